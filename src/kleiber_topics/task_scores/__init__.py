"""Task scores: a law that predicts the score of a task from parameters and tokens, through the loss or directly."""

from kleiber.types import lazy_exports

EXPORTS: dict[str, str] = {}
LAWS = {"downstream": "law.downstream"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
