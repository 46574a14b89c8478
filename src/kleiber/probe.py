"""What runs of given configs would cost on this machine: a process of its own, since it imports torch.

`ask` starts it: `python -m kleiber.probe` reads a request from standard input and prints the answer as its last line.
What the answer says is computed in `prices`.
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    from kleiber import cell
    from kleiber.imports import import_lightning

    request = json.load(sys.stdin)
    try:
        import_lightning()
        import kleiber.preload  # noqa: F401  (what a run imports is not part of its time)
        from kleiber.prices import answer

        priced = answer(request)
    except Exception as error:
        return cell.report(error)
    print(json.dumps(priced))
    return 0


if __name__ == "__main__":
    sys.exit(main())
