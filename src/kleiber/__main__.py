"""`python -m kleiber` is the `kleiber` command.

Python has put the working folder in front of its module path. It is removed before anything else is imported, so that
no file there replaces a module. Python itself has imported some by then: use `kleiber`, or `python -P -m kleiber`.
"""

import os
import sys

if __name__ == "__main__":
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()) and home != os.getcwd():
        del sys.path[0]
    from kleiber.launch.cli import main

    sys.exit(main())
