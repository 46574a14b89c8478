"""The overrides of a run of seconds: what most tests of whole runs start from."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
TINY = [
    "trainer=smoke", "data=text", f"data.path={REPOSITORY / 'tests/data/tiny.txt'}", "trainer.threads=1",
    "logger=csv", "callbacks.samples.length=8",
    "batch.tokens=512",
]  # fmt: skip
