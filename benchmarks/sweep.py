"""Runs per hour of one sweep of tiny runs under `launcher=process`, under Hydra's own basic launcher, and as fresh
processes one after another.

Width 64, 2 layers, 300 steps of 4096 tokens, one thread a run. The three take turns, A B C A B C ..., so that a machine
that drifts drifts for all; ratios of wall time are taken round by round, and medians printed. `basic` is Hydra's
launcher as every project of the kind uses it: one process, cell after cell, with this project's run in it and as many
threads as there are cores.

    python benchmarks/sweep.py --runs 16 --steps 300 --rounds 3
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
SHAPE = [
    "model.width=64", "model.depth=2", "model.num_heads=4", "model.context=128", "batch.tokens=4096", "logger=csv",
    "eval.every_steps=0", "eval.tokens=32K", "callbacks.checkpoints.every=0", "callbacks.samples=null",
]  # fmt: skip
BASIC = """
import logging, sys
from pathlib import Path
import hydra
from omegaconf import OmegaConf
from kleiber.training.lightning import import_lightning
from kleiber.config.compose import resolve_config

import_lightning()

@hydra.main(version_base="1.3", config_path={conf!r}, config_name="train")
def main(cfg):
    from kleiber.runs.run import train
    from kleiber.records.summary import Summary
    config, _ = resolve_config(OmegaConf.merge({{"hydra": {{"runtime": {{"choices": {{}}}}}}}}, cfg))
    folder = Path(cfg.root) / f"seed{{cfg.seed}}"
    folder.mkdir(parents=True)
    assert train(config, folder) == 0

main()
"""


def process(root: str, runs: int, options: list[str]) -> None:
    seeds = ",".join(map(str, range(runs)))
    ours = [sys.executable, "train.py", "-m", "name=sweep", f"root={root}", f"seed={seeds}", *options]
    call(ours, runs, root)


def basic(root: str, runs: int, options: list[str]) -> None:
    script = Path(root, "basic.py")
    script.write_text(BASIC.format(conf=str(REPOSITORY / "conf")))
    seeds = ",".join(map(str, range(runs)))
    own = ["-m", "hydra/launcher=basic", "hydra/sweeper=basic", f"hydra.sweep.dir={root}"]
    given = [text if "." not in text.partition("=")[0] else f"++{text}" for text in options]
    call([sys.executable, str(script), *own, f"root={root}", f"seed={seeds}", *given], runs, root)


def fresh(root: str, runs: int, options: list[str]) -> None:
    for seed in range(runs):
        call([sys.executable, "train.py", f"root={root}", f"seed={seed}", *options], seed + 1, root)


def call(command: list[str], runs: int, root: str) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    finished = [path for path in Path(root).rglob("summary.json") if '"status": "finished"' in path.read_text()]
    if done.returncode or len(finished) != runs:
        raise RuntimeError(f"{len(finished)} of {runs} runs finished\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def seconds(way: Callable[[str, int, list[str]], None], runs: int, options: list[str]) -> float:
    with tempfile.TemporaryDirectory() as root:
        began = time.perf_counter()
        way(root, runs, options)
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="further overrides for every run")
    a = parser.parse_args()
    os.environ["WANDB_MODE"] = "disabled"
    replaced = tuple(f"{override.partition('=')[0]}=" for override in a.overrides)
    shape = [override for override in SHAPE if not override.startswith(replaced)]
    options = [*shape, f"budget.steps={a.steps}", *a.overrides]
    seconds(fresh, 1, [*shape, "budget.steps=1", *a.overrides])  # builds the data cache, so that no measured run does
    ways = (process, basic, fresh)
    taken: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for number in range(a.rounds):
        for way in ways:
            taken[way.__name__].append(seconds(way, a.runs, options))
        told = ", ".join(f"{name} {values[-1]:.1f} s" for name, values in taken.items())
        print(f"round {number + 1}: {told}", flush=True)
    print(f"{a.runs} runs of {a.steps} steps, {a.rounds} rounds")
    for name, values in taken.items():
        ratio = statistics.median(other / own for own, other in zip(taken["process"], values, strict=True))
        hourly = 3600 * a.runs / statistics.median(values)
        print(f"  {name:8} {hourly:8.0f} runs per hour   process has {ratio:.2f}x of them")


if __name__ == "__main__":
    main()
