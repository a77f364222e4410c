"""Checks of the files that describe clusters, a module a kind of file; `cluster/check.py` runs them."""
