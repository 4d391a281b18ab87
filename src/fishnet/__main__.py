"""`python -m fishnet` is the command line."""

import sys

from fishnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
