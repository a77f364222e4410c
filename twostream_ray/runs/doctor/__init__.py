"""Preflight diagnosis of a cluster: whether a recipe can train on it, how fast, and what its bottleneck is."""
