"""`python -m localflow` is the same as `localflow`."""

import sys

from localflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
