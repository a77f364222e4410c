"""Hyperparameter search over fusion designs, on Ray Tune."""
