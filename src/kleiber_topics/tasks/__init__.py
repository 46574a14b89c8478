"""Tasks of text generation: studies of what helps small models with them."""

from kleiber.types import lazy_exports

EXPORTS = {"rank_agreement": "agreement"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
