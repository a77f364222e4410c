"""Fused appearance and motion networks for action recognition in video, trained on Ray and tracked in MLflow."""

__version__ = "0.1.0"
