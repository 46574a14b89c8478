"""`python -m kleiber` is the `kleiber` command."""

import sys

from kleiber.config.errors import ignore_interrupts
from kleiber.launch.cli import main

if __name__ == "__main__":
    sys.exit(ignore_interrupts(main()))
