"""Train one model, or a sweep of them: `python train.py --help`."""

import sys

from kleiber.launch.main import main

if __name__ == "__main__":
    sys.exit(main())
