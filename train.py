"""Train one model, or a sweep of them: `python train.py --help`."""

import sys

if __name__ == "__main__":
    try:
        from kleiber.config.errors import ignore_interrupts
        from kleiber.launch.main import main
    except KeyboardInterrupt:  # Ctrl-C within the first second
        sys.exit(130)
    sys.exit(ignore_interrupts(main()))
