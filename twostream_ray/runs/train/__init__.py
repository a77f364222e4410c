"""Distributed data-parallel training on Ray Train."""
