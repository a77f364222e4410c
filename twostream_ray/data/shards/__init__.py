"""The shard format: Parquet files of encoded clips with optical flow, a manifest and an index."""
