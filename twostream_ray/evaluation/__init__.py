"""Evaluation of class scores: metrics, confidence intervals, calibration, late fusion, classification reports."""
