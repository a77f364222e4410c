"""A search over settings: every trial a training run, the best network registered.

ray job submit --working-dir . -- python jobs/tune.py --config search_fusion
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
