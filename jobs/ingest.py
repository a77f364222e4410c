"""Labelled raw videos -> shards with optical flow.

ray job submit --working-dir . -- python jobs/ingest.py --catalog.root s3://bucket/videos --out s3://bucket/shards
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
