"""Models: kleiber's Transformer and Hugging Face models, their conversion, sizes and costs, and sampling from them."""

from kleiber.types import lazy_exports

EXPORTS = {
    "HFModel": "hf",
    "LSTM": "lstm",
    "Transformer": "transformer",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
