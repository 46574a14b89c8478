"""Processor time of `kleiber runs` on thousands of runs: listed, and filtered by a key of their configs.

The runs are copies of one tiny run with other seeds, learning rates and losses. The filter reads the config.yaml of
every run.

    python benchmarks/run_list.py --runs 5000
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    "listed": ["--limit", "3"],
    "filtered": ["--limit", "3", "--filter", "model.width == 64"],
}


def train(folder: Path) -> Path:
    """Trains the run that is copied."""
    kleiber = [sys.executable, "-m", "kleiber", "train", "trainer=smoke", "logger=csv", f"root={folder}"]
    subprocess.run(kleiber, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (run,) = (folder / "runs").iterdir()
    return run


def copy(run: Path, place: Path, count: int) -> None:
    """Writes `count` runs like `run` to a folder."""
    summary, config = (run / "summary.json").read_text(), (run / "config.yaml").read_text()
    draw = random.Random(0)
    for number in range(count):
        home = place / f"run-{number:05d}"
        home.mkdir(parents=True)
        values = json.loads(summary)
        values["seed"] = number
        for stage in values["stages"]:
            stage["lr"] = 10 ** draw.uniform(-3, -1)
            stage["metrics"] = {name: value + draw.gauss(0, 0.1) for name, value in stage["metrics"].items()}
        (home / "summary.json").write_text(json.dumps(values))
        (home / "config.yaml").write_text(config.replace("seed: 0", f"seed: {number}", 1))
        (home / "overrides.yaml").write_text(f"- seed={number}\n")


def seconds(arguments: list[str], environment: dict[str, str]) -> float:
    """Processor time of a command in its own process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(arguments, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "many"
        copy(train(Path(folder)), place, count)
        environment = {**os.environ, "KLEIBER_CACHE": str(Path(folder) / "cache")}
        for name, options in COMMANDS.items():
            spent = seconds([sys.executable, "-m", "kleiber", "runs", str(place), *options], environment)
            print(f"{count} runs {name}: {spent:.2f} s", flush=True)


if __name__ == "__main__":
    main()
