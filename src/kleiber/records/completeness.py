"""Whether recorded runs have what an analysis of them takes for granted: the groups of keys of every config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kleiber.config.errors import ConfigError
from kleiber.records.catalog import Run

GROUPS = ("model", "data", "objective", "optimizer", "batch")  # mappings in the config of every run


@contextmanager
def incomplete_runs_named(runs: Sequence[Run]) -> Iterator[None]:
    """Raises ConfigError, which names the run, where an analysis of runs failed and one of them has no whole config.

    Any other error is raised as it is.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        for run in runs:
            missing = [group for group in GROUPS if not isinstance(run.config.get(group), dict)]
            if missing:
                raise ConfigError(
                    f"{run.folder}: its config has no group {missing[0]}, as that of every run has: it is damaged, or "
                    "was not written by kleiber"
                ) from error
        raise
