"""Labelled videos in, batches of snippets out; importing this package loads nothing heavy."""
