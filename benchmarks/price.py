"""What it takes to price a sweep: wall time, and the largest memory that all of its processes hold together.

A dry run of `--cells` cells (widths x seeds x learning rates) in a process of its own, watched every 50 ms.

    python benchmarks/price.py --cells 200
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
WIDTHS = [32, 48, 64, 80, 96]


def resident_bytes(root: int) -> int:
    """Memory of a process and of all that it started, shared pages counted once a process."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = path.joinpath("stat").read_text().rpartition(")")[2].split()
            parents[int(path.name)] = int(fields[1])
            sizes[int(path.name)] = int(fields[21]) * 4096
        except (OSError, IndexError):  # it has ended
            continue
    total = 0
    for pid, size in sizes.items():
        ancestor = pid
        while ancestor not in (root, 0, 1):
            ancestor = parents.get(ancestor, 0)
        total += size if ancestor == root else 0
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=200)
    cells = parser.parse_args().cells
    rates = ",".join(f"{0.001 * 1.1**k:.5f}" for k in range(max(1, cells // (2 * len(WIDTHS)))))
    with tempfile.TemporaryDirectory() as root:
        command = [
            sys.executable, "train.py", "-m", "name=priced", f"root={root}", f"optimizer.lr={rates}", "seed=0,1",
            f"model.width={','.join(map(str, WIDTHS))}", "model.context=128", "batch.tokens=1024",
            "budget.tokens=2M", "eval.tokens=64K", f"dry_run={root}/plan.json",
        ]  # fmt: skip
        began, largest = time.perf_counter(), 0
        started = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        while started.poll() is None:
            largest = max(largest, resident_bytes(started.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        assert started.stdout is not None
        print("\n".join(started.stdout.read().splitlines()[-7:]))
        print(f"{seconds:.1f} s of wall time, {largest / 2**20:,.0f} MiB at most")


if __name__ == "__main__":
    main()
