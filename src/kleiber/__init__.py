"""kleiber: a Lightning + Hydra laboratory for language-model science.

The functions here are the public Python API. Each is imported, with what it needs, when it is first used.

    run = kleiber.open("multirun/runs/CELL")
    run.generate("Once upon a time")
    kleiber.runs("multirun/first")                             # a DataFrame, a row a run
    law = kleiber.fit("multirun/scaling", "chinchilla")
    law.predict(N=1e8, D=2e9)
    kleiber.train(["model=moe", "budget.tokens=1M"])           # exit code and folder
"""

import os

# Threads of PyTorch wait for each other at a barrier. By default they spin there for so long that they keep the others
# from running wherever the machine has more to do than cores. This long costs an idle machine nothing.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

TYPE_CHECKING = False  # for type checkers; `python -m kleiber` must import nothing here (see `kleiber.__main__`)
if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

    from kleiber.launch.main import compose_config as compose
    from kleiber.launch.main import train
    from kleiber.runs.open import open_model as open
    from kleiber.studies.fitted_law import fit
    from kleiber.studies.fitted_law import load as load_law

    def runs(folder: str | Path) -> pd.DataFrame:
        """Returns the runs in a folder, see `kleiber.runs`."""
        ...


__version__ = "0.1.0"
__all__ = ["compose", "fit", "load_law", "open", "runs", "train"]
API = {  # module and name of each function
    "compose": ("kleiber.launch.main", "compose_config"),
    "fit": ("kleiber.studies.fitted_law", "fit"),
    "load_law": ("kleiber.studies.fitted_law", "load"),
    "open": ("kleiber.runs.open", "open_model"),
    "train": ("kleiber.launch.main", "train"),
}


def __getattr__(name: str) -> object:
    """Imports a function of the API, or the package `kleiber.runs`, which can be called (PEP 562)."""
    from importlib import import_module

    if name == "runs":
        return import_module("kleiber.runs")
    if name not in API:
        raise AttributeError(f"module 'kleiber' has no attribute {name!r}")
    module, function = API[name]
    return getattr(import_module(module), function)
