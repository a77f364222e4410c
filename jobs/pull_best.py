"""Download the champion for use without MLflow.

ray job submit --working-dir . -- python jobs/pull_best.py champion
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["pull", *sys.argv[1:]]))
