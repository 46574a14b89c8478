"""Collapse: models that are trained on what models wrote."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Generated": "generated",
    "Generations": "generations",
    "Degeneration": "evaluation",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
