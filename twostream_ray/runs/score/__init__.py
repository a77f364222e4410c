"""Inference and evaluation with trained models: evaluate, predict, publish, explain, export, tune late fusion."""
