"""The service as two replicas of Ray Serve, until the job is stopped.

ray job submit --working-dir . -- python jobs/serve.py --model models:/two-stream@champion --replicas.number 4
"""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", "--replicas.number", "2", *sys.argv[1:]]))
