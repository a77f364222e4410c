"""Scoring with trained models: evaluation, publication, prediction, tuning of late fusion."""
