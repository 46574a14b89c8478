"""Mixtures: a law of the loss as a function of the weights of domains, and a design that trains mixtures for it."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Simplex": "simplex",
    "predicted_losses": "law",
}
LAWS = {"mixture": "law.mixture"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
