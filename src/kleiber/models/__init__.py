"""Whole models: our transformer, Hugging Face models, and what is computed from a model as a whole."""

from kleiber.types.exports import lazy_exports

EXPORTS = {
    "HFModel": "hf.wrapped",
    "Transformer": "transformer",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
