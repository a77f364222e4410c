"""Metrics of a set of scores: accuracies, late fusion, reports."""
