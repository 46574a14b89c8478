"""`python -m kleiber` is the `kleiber` command."""

import sys

from kleiber.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
