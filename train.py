"""Train one model, or a sweep of them: `python train.py --help`."""

from kleiber.config.errors import exit_on_signals, exit_with

if __name__ == "__main__":
    exit_on_signals()  # importing the rest takes a second
    from kleiber.launch.main import main

    exit_with(main())
