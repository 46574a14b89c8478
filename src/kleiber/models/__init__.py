"""Models: kleiber's Transformer and Hugging Face models, their conversion, sizes and costs, and sampling from them."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.models.block import Block
    from kleiber.models.generation import Adjust, continuations, generate
    from kleiber.models.hf import HFModel
    from kleiber.models.transformer import Transformer

EXPORTS = {
    "HFModel": "hf",
    "LSTM": "lstm",
    "Transformer": "transformer",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
