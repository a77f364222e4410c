"""Training: losses and optimiser, the step, the loop over batches, distribution, checkpoints."""
