"""Train one model, or a sweep of them: `python train.py --help`."""

import sys

try:
    from kleiber.config.errors import exit_on_signals, exit_with
except ModuleNotFoundError as error:
    if error.name != "kleiber":
        raise
    sys.exit("train.py: this Python has no kleiber: `make train` installs it, then `source .venv/bin/activate`")

if __name__ == "__main__":
    exit_on_signals()  # importing the rest takes a second
    from kleiber.launch.main import main

    exit_with(main())
