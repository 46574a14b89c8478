"""kleiber: a Lightning + Hydra laboratory for language-model science.

The functions here are the public Python API. Each imports what it needs when it is called.

    run = kleiber.open("multirun/runs/CELL")
    run.generate("Once upon a time")
    kleiber.runs("multirun/first")                             # a DataFrame, a row a run
    law = kleiber.fit("multirun/scaling", "chinchilla")
    law.predict(N=1e8, D=2e9)
    kleiber.train(["model=moe", "budget.tokens=1M"])           # exit code and folder
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from kleiber.launch.main import Trained
    from kleiber.runs.open import TrainedModel
    from kleiber.studies.fitted_law import FittedLaw
    from kleiber.studies.laws.law import Function
    from kleiber.types import Json

    def runs(folder: str | Path) -> pd.DataFrame:
        """Returns the runs in a folder, see `kleiber.runs`."""
        ...


__version__ = "0.1.0"
__all__ = ["compose", "fit", "load_law", "open", "runs", "train"]


def open(path: str | Path) -> TrainedModel:
    """Opens RUN, RUN/STAGE or a Hugging Face folder on the CPU. RUN alone means its last finished stage.

    The result has `generate(prompt)`, `metrics`, `config`, `model` and `tokenizer`. Raises ValueError when there is no
    such finished stage, its recorded config does not pass the check, or no checkpoint is valid.
    """
    from kleiber.runs.open import open_model

    return open_model(path)


def fit(
    table: str | Path | pd.DataFrame,
    law: str | Function = "chinchilla",
    *,
    map: Mapping[str, str] | None = None,
    where: Sequence[str] = (),
    fix: Mapping[str, float] | None = None,
    sigma: str | None = None,
    delta: float | None = None,
    **options: object,
) -> FittedLaw:
    """Fits a scaling law to a table of runs, as `kleiber fit` does.

    table    DataFrame, or path of a .csv, .jsonl or .parquet file or of a folder of runs
    law      name of a shipped law, FILE.py:FUNCTION, or a function of inputs and keyword-only parameters
    map      column by role, such as {"N": "params", "D": "tokens", "L": "loss"}
    where    filters of rows, such as "loss < 4 and N >= 1e8"
    fix      parameters that are held at a value
    sigma    column of the standard errors of the target
    delta    Huber delta on the scale of the residuals; None: 0.001
    options  loss_fn, space, bootstrap, cluster, seed, level, backtest, predict, exclude, rank, max_decades, at

    The result has `params`, `derived`, `verdicts`, `predict(N=, D=)`, `plot()` and `write(path)`. Raises ValueError for
    wrong options and unusable rows.
    """
    from kleiber.studies import fitted_law

    return fitted_law.fit(table, law, map=map, where=where, fix=fix, sigma=sigma, delta=delta, **options)


def load_law(path: str | Path, law: str | None = None) -> FittedLaw:
    """Reads a law from laws.json.

    law  FILE.py:FUNCTION, if the law was fitted with it and you trust the file

    Raises ValueError for a file that is missing or has other content than one law.
    """
    from kleiber.studies import fitted_law

    return fitted_law.load(path, law)


def compose(overrides: Sequence[str] = ()) -> Json:
    """Returns the checked config of a command line, as plain data: `compose(["model=moe"])["model"]["depth"]`.

    Raises ConfigError, a ValueError, for a wrong override.
    """
    from kleiber.launch.main import compose_config

    return compose_config(overrides)


def train(overrides: Sequence[str] = ()) -> Trained:
    """Trains a run, or a sweep with "-m" among the overrides, as `kleiber train` does.

    Returns (exit code, folder of the run or the sweep). Raises ConfigError, a ValueError, for a wrong override.
    """
    from kleiber.launch.main import train

    return train(overrides)


def __getattr__(name: str) -> object:
    """Imports the package `kleiber.runs`, which can be called: `kleiber.runs(folder)` (PEP 562)."""
    if name == "runs":
        import kleiber.runs

        return kleiber.runs
    raise AttributeError(f"module 'kleiber' has no attribute {name!r}")
