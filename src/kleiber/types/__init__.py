"""What every package imports: names for plain data, ranges of numbers, and the lazy exports of a package.

The modules beside this file define batches and losses, and the base classes of what a user can add. This file imports
no torch, because configs, records and studies read it.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

if TYPE_CHECKING:
    from kleiber.types.access import DataPath
    from kleiber.types.batch import Batch, Loss
    from kleiber.types.contracts import Corpus, HeldOut, Objective, Planted, Samples
    from kleiber.types.model import Head, Model, device_of, evaluation_mode, hash_weights
    from kleiber.types.score import Metric, Metrics, Score, Scores, format_interval, variants
    from kleiber.types.tokenizer import Tokenizer

Json = dict[str, Any]  # an object read from JSON, or written to it
Config = Mapping[str, Any]  # a resolved config, or a node of one, as plain data
Row = Mapping[str, Any]  # one row of a table: values by column
Template = Literal["chat", "plain"]  # how a model is given a prompt: as a conversation, or as plain text

# The ranges of arguments. A config with a value outside of the annotated range is refused, by the name of its key.
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Decay = Annotated[float, Ge(0), Lt(1)]  # of a moving average
Dropout = Annotated[float, Ge(0), Lt(1)]
Count = Annotated[int, Ge(1), Le(10**12)]  # of steps, rows, tokens, ...
Natural = Annotated[int, Ge(0), Le(10**12)]  # a count that can be 0
Seed = Annotated[int, Ge(-(2**31)), Le(2**32 - 1)]  # what PyTorch and the order of data accept
Depth = Annotated[int, Ge(1), Le(10_000)]
Width = Annotated[int, Ge(1), Le(2**20)]  # also of hidden layers, and numbers of heads
Context = Annotated[int, Ge(1), Le(2**24)]
NumExperts = Annotated[int, Ge(2), Le(2**16)]
ChosenExperts = Annotated[int, Ge(1), Le(2**16)]  # a number of experts or of groups among all
SharedExperts = Annotated[int, Ge(0), Le(2**16)]
VocabSize = Annotated[int, Ge(1), Le(2**31)]


def lazy_exports(package: str, exports: Mapping[str, str], file: str) -> tuple[list[str], Callable[[str], object]]:
    """Returns `__all__` and `__getattr__` of a package (PEP 562), which imports a name when it is first used.

    What the file of the package imports from its modules `if TYPE_CHECKING` is for other packages, so that type
    checkers and the running program read the same list. Only names in `exports` may stand in a config as `_target_`,
    such as `kleiber.retention.EWC`, whichever module of the package defines it.

    package  name of the package
    exports  the module that defines each name, relative to the package
    """
    modules = {**exports, **typed_names(package, file)}

    def attribute(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return pkgutil.resolve_name(f"{package}.{modules[name]}:{name}")

    return [*modules], attribute


def typed_names(package: str, file: str) -> dict[str, str]:
    """Returns the names that the file of a package imports from its modules `if TYPE_CHECKING`, with their modules."""
    blocks = [node.body for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module).removeprefix(f"{package}.") for node in imports for alias in node.names}


_names, __getattr__ = lazy_exports(__name__, {}, __file__)
__all__ = sorted(name for name in globals() if name[0] != "_") + _names
