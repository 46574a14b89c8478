"""What every package imports: names for plain data, and the lazy exports of a package.

The modules beside this file define batches and losses, and the base classes of what a user can add. This file imports
no torch, because configs, records and studies read it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]  # an object read from JSON, or written to it
Config = Mapping[str, Any]  # a resolved config, or a node of one, as plain data
Row = Mapping[str, Any]  # one row of a table: values by column


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
