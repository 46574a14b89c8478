"""Train one model, or a sweep of them: `python train.py --help`."""

import sys

from kleiber.config.errors import ignore_interrupts
from kleiber.launch.main import main

if __name__ == "__main__":
    sys.exit(ignore_interrupts(main()))
