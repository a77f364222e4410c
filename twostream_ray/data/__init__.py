"""Data pipeline: labelled videos are ingested into shards and read back as batches of snippets.

Importing this package loads no heavy dependency.
"""
