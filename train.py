"""Train one model, or a sweep of them: `python train.py --help`."""

import sys

from kleiber.config.errors import exit_on_interrupt

if __name__ == "__main__":
    exit_on_interrupt()  # importing the rest takes a second
    from kleiber.launch.main import main

    sys.exit(main())
