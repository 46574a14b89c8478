"""The command `kleiber`, which `python -m kleiber` is too."""

from typing import NoReturn

from kleiber.config.errors import exit_on_signals, exit_with


def main() -> NoReturn:
    """Runs the command line of this process, and ends the process with the exit code."""
    exit_on_signals()  # importing the rest takes a second
    from kleiber.launch.cli import main

    exit_with(main())


if __name__ == "__main__":
    main()
