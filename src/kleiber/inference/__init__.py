"""Inference with few seeds: shared variance, joint intervals, pairing, best rates, and sequential tests.

Pure functions of numbers. They know no run, no study and no file, and import neither torch nor a package of kleiber.
"""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.inference.gating import (
        ERROR_KINDS,
        FEWEST_PLAIN,
        PILOT,
        ErrorBudget,
        ErrorKind,
        Rules,
        Stream,
        interval_elsewhere,
        interval_of_pairs,
        interval_of_screen,
    )

__all__, __getattr__ = lazy_exports(__name__, {}, __file__)
