"""Benchmarks: throughput of this package and of common alternatives, on the same clips in the same run."""
