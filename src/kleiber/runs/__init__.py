"""One run: its plan, its tree of stages, where it starts from, training it, and opening it again.

The package can be called: `kleiber.runs(folder)` returns the table of the runs in a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    import pandas as pd

    from kleiber.runs.open import TrainedModel, open_model

EXPORTS = {
    "Chain": "stage_tree",
    "TrunkAndCooldowns": "stage_tree",
    "Checkpoint": "start_point",
    "HF": "start_point",
    "Scratch": "start_point",
    "Upcycle": "upcycle",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)


class RunsPackage(ModuleType):
    """The class of this package, which makes it callable."""

    def __call__(self, folder: str | Path) -> pd.DataFrame:
        """Returns the runs in a folder and its subfolders: a row for each leaf, with its columns and every metric.

        Raises FileNotFoundError where there is no such folder.
        """
        from kleiber.records import catalog

        return catalog.frame(catalog.read_runs(Path(folder)))


sys.modules[__name__].__class__ = RunsPackage
