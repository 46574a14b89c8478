"""Models: our Transformer, Hugging Face models, and their conversion, sizes and costs, and sampling."""

from kleiber.types import lazy_exports

EXPORTS = {
    "HFModel": "hf",
    "Transformer": "transformer",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
