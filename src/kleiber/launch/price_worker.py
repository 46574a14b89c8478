"""What runs of given configs would cost on this machine: a process of its own, since it imports torch.

`ask` starts it: `python -m kleiber.launch.price_worker` reads a request from standard input and prints
the answer as its last line. What the answer says is computed in `prices`.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    from kleiber.launch import process
    from kleiber.training.lightning import import_lightning

    request = json.load(sys.stdin)
    try:
        import_lightning()
        import kleiber.launch.preload  # noqa: F401  (what a run imports is not part of its time)
        from kleiber.launch.plan_of_sweep import answer

        priced = answer(request)
    except Exception as error:
        return process.report(error)
    print(json.dumps(priced))
    return 0


if __name__ == "__main__":
    sys.exit(main())
