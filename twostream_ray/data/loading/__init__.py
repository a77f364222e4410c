"""Data loading: reads shards into batches for each worker of a distributed training run."""
