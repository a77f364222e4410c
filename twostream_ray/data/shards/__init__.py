"""Shard format: content-addressed Parquet files of encoded clips and optical flow, with a manifest and an index."""
