"""Tasks of text generation: a study of what helps small models with them."""

from kleiber.types import lazy_exports

EXPORTS: dict[str, str] = {}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
