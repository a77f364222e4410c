"""Classes of raw videos.

ray job submit --working-dir . -- python jobs/predict.py s3://bucket/videos/a.mp4
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
