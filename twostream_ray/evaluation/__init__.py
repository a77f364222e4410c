"""Evaluation of scores: metrics, late fusion, classification reports."""
