"""Ablation of the streams: what motion adds to appearance on a data set, in one table."""
