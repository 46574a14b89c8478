"""Milliseconds of this process to compose and check a cell of a study, without starting any: what a sweep takes before
its first run, and a dry run before its price.

Cells are the product of the study's design and of `--seeds` seeds. The first cells of a process read and merge files,
so the mean falls with the number of cells.

    python benchmarks/plan.py --study sparsity --seeds 100
"""

import argparse
import os
import tempfile
import time
from contextlib import redirect_stdout
from io import StringIO

from kleiber.config.compose import Composer
from kleiber.launch.sweep import Sweep


class Plan(Sweep):
    """A sweep of which cells are composed and checked, and nothing else."""

    def _print_price(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", default="sparsity")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("overrides", nargs="*", help="further overrides of the sweep")
    a = parser.parse_args()
    seeds = ",".join(map(str, range(a.seeds)))
    with tempfile.TemporaryDirectory() as root, redirect_stdout(StringIO()):
        os.environ["KLEIBER_ROOT"] = root
        began = time.process_time()
        sweep = Plan(Composer())
        sweep.start([f"study={a.study}", f"seed={seeds}", "dry_run=true", *a.overrides])
        spent = time.process_time() - began
    cells = len(sweep.composed)
    print(f"{a.study}: {cells} cells, {1000 * spent / cells:.1f} ms a cell, {spent:.1f} s in all")


if __name__ == "__main__":
    main()
