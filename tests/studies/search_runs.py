"""The runs of a search whose losses are planted, as the design plans them."""

import math
from collections.abc import Callable
from pathlib import Path

from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.designs.design import parse_lines
from kleiber.studies.designs.search import Search

KEYS = {
    "optimizer.lr": {"log": [0.001, 0.1]},
    "batch.tokens": [256, 512, 1024, 2048],
    "optimizer.weight_decay": {"linear": [0, 1]},
}


class Folder:
    """The context of a design: a folder of runs."""

    planned = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def runs(self):
        return read_runs(self.folder) if self.folder.is_dir() else []


def planted_loss(values: dict[str, str], seed: int, tokens: float) -> float:
    """A bowl around a rate of .01, whatever the batch and the decay; better with more tokens, worse by seed."""
    rate = float(values["optimizer.lr"])
    return (
        2 + 0.1 * math.log(rate / 0.01) ** 2 - 0.05 * math.log2(tokens / 1e5) + 0.002 * math.sin(7 * seed + 1e4 * rate)
    )


def train(
    folder: Path, design: Search, loss: Callable[[dict[str, str], int, float], float] = planted_loss
) -> list[list[list[str]]]:
    """Writes a finished run for each cell of each round; returns the cells by round."""
    rounds = []
    for cells in design.rounds(Folder(folder)):
        rounds.append(cells)
        for cell in cells:
            values = parse_lines(cell)
            seed, tokens, trial = int(values["seed"]), float(values["budget.tokens"]), values["study.arm"]
            config = {
                "seed": seed,
                "study": {"arm": trial},
                "budget": {"tokens": tokens},
                "design": {"keys": KEYS, "sampler": design.sampler},
            }
            metrics = {"val/docs/loss": loss(values, seed, tokens)}
            home, stage = folder / f"{trial}-{tokens:g}-{seed}", {"tokens": int(tokens), "metrics": metrics}
            fake_run(home, [stage], config=config, overrides=[*cell, "model.width=32"], seed=seed)
    return rounds
