"""What a user waits for: `--help`, `--cfg job`, and a whole run of one step on cached data, each beside
`python -c "import torch, lightning"`.

Fresh processes in turn, so that a machine that drifts drifts for all; medians of `--rounds` after a warm-up round. The
run is timed to its exit, evaluation and checkpoint included, which bounds the time to its first step from above.

    python benchmarks/start.py --rounds 5
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "train.py")]
YARDSTICK = "import torch, lightning"


def commands(root: str) -> dict[str, list[str]]:
    shape = ["model.width=128", "model.depth=4", "eval.tokens=256", "callbacks.samples=null", "logger=csv"]
    return {
        YARDSTICK: [sys.executable, "-c", YARDSTICK],
        "train.py --help": [*TRAIN, "--help"],
        "train.py --cfg job": [*TRAIN, "--cfg", "job"],
        "train.py of one step": [*TRAIN, *shape, "budget.steps=1", f"root={root}"],
    }


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory() as root:  # a fresh one, or the run would be found finished
            for name, command in commands(root).items():
                spent = seconds(command)
                if number:  # the first round fills the caches
                    taken.setdefault(name, []).append(spent)
    yardstick = statistics.median(taken[YARDSTICK])
    for name, values in taken.items():
        middle = statistics.median(values)
        print(f"{name:28} {middle:6.2f} s   {middle / yardstick:5.2f}x")


if __name__ == "__main__":
    main()
