"""Ablation of the streams: what motion adds to appearance on somebody's own videos, in one table."""
