"""The overrides of a run of seconds: what most tests of whole runs start from."""

from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TINY = [
    "trainer=smoke", "data=text", f"data.path={REPOSITORY / 'tests/data/tiny.txt'}", "trainer.threads=1",
    "logger=csv", "callbacks.samples.length=8",
    "batch.tokens=512",
]  # fmt: skip
SHAPE = ["model.width=32", "model.num_heads=2", "model.depth=1", "budget.steps=2"]  # the least that trains


def last_of_each(overrides: Iterable[str]) -> list[str]:
    """The overrides without those that later ones replace, which the command line of a process may not have.

    A later `a=...` replaces earlier values of `a` and of what is below it.
    """
    kept: dict[str, str] = {}
    for override in overrides:
        key = override.partition("=")[0]
        kept = {other: kept[other] for other in kept if other != key and not other.startswith(f"{key}.")}
        kept[key] = override
    return list(kept.values())
