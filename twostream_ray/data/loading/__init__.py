"""Data loading: shards into batches for each worker of a distributed training."""
