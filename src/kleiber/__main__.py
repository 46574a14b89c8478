"""The command `kleiber`, which `python -m kleiber` is too.

Python has put the working folder in front of its module path. It is removed before anything else is imported, so that
no file there replaces a module. Python itself has imported some by then: use `kleiber`, or `python -P -m kleiber`.
"""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line of this process, and ends the process with the exit code."""
    from kleiber.config.errors import exit_on_signals, exit_with

    exit_on_signals()  # importing the rest takes a second
    from kleiber.launch.cli import main

    exit_with(main())


if __name__ == "__main__":
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()) and home != os.getcwd():
        del sys.path[0]
    main()
