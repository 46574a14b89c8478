"""Retrieval: text that a model looks up, in front of a prompt or as neighbors of its states."""

from kleiber.types import lazy_exports

EXPORTS = {
    "OpenBook": "open_book",
    "Retrieval": "evaluation",
    "matched_losses": "matched",
}
LOOKUPS = {"bm25": "lookup.Lookup", "dense": "lookup.Lookup", "knn": "lookup.Lookup"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
