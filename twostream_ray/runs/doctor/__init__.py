"""Cluster diagnostics: whether a recipe can train on a Ray cluster, how fast, and what the bottleneck is."""
