"""Ray cluster of a run: an existing shared one, or a private one that ends with the run."""
