"""Workloads of the verbs on a Ray cluster (or without one); importing this package imports nothing heavy."""
