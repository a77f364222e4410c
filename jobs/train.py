"""Shards -> a trained, evaluated and registered network.

ray job submit --working-dir . -- python jobs/train.py --config demo
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
