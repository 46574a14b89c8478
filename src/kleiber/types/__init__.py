"""What every package imports: names for plain data, ranges of numbers, and the lazy exports of a package.

The modules beside this file define batches and losses, and the base classes of what a user can add. This file imports
no torch, because configs, records and studies read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt

Json = dict[str, Any]  # an object read from JSON, or written to it
Config = Mapping[str, Any]  # a resolved config, or a node of one, as plain data
Row = Mapping[str, Any]  # one row of a table: values by column

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


def lazy_exports(package: str, exports: Mapping[str, str]) -> Callable[[str], object]:
    """Returns the `__getattr__` of a package (PEP 562), which imports an exported class when it is first used.

    A config names such a class as `kleiber.retention.EWC`, whichever module of the package defines it.

    package  name of the package
    exports  the module that defines each exported name, relative to the package
    """

    def attribute(name: str) -> object:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{exports[name]}"), name)

    return attribute
