"""A trained model on a split of shards.

ray job submit --working-dir . -- python jobs/evaluate.py --model models:/two-stream@champion --shards s3://bucket/shards
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
