"""`python -m twostream_ray` is the `twostream` command."""

import sys

from twostream_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
