"""Training: losses, optimiser, training step and loop, DistributedDataParallel, checkpoints; independent of Ray."""
