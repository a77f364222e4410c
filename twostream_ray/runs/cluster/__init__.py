"""The Ray cluster of a run: a shared one that is there, or a private one."""
