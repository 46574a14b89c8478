"""Whose classes a config may name as `_target_`: kleiber's, some of torch and lightning, and those of the reader.

The reader allows packages in the environment variable KLEIBER_EXTENSIONS, as `mylab,otherlab`. A config cannot allow
any, so a run folder or checkpoint of somebody else builds nothing that its reader has not allowed.
"""

from __future__ import annotations

import importlib
import inspect
import os
from typing import Any

from kleiber.config.errors import ConfigError

ALLOWED = ("kleiber.", "torch.optim.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")
VARIABLE = "KLEIBER_EXTENSIONS"


def extension_prefixes() -> tuple[str, ...]:
    """Returns the beginnings of names that the reader allows, such as `mylab.`.

    Raises ConfigError for what is not the name of a package.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{VARIABLE}={name} must be names of packages, separated by commas")
    return tuple(f"{name}." for name in names)


def require_allowed(target: str, extra: tuple[str, ...]) -> None:
    """Raises ConfigError for a name that begins neither with one of ALLOWED nor with one of `extra`."""
    if not target.startswith((*ALLOWED, *extra)):
        raise ConfigError(
            f"_target_ {target} is not allowed: it must begin with {', '.join((*ALLOWED, *extra))}; name your own "
            f"package in the environment variable {VARIABLE}"
        )


def import_target(target: str, extra: tuple[str, ...]) -> Any:
    """Imports a class, or a function of torch or lightning, by its dotted name.

    Raises ConfigError where it cannot be imported, and for what an allowed module only imports from another one.
    """
    module, _, name = target.rpartition(".")
    try:
        imported = vars(importlib.import_module(module))[name]
    except (ImportError, KeyError):
        raise ConfigError(
            f"_target_ {target} cannot be imported: check the spelling, or install the package that defines it"
        ) from None
    own_class = target.startswith(extra)
    owner = inspect.getmodule(imported)
    is_kind = inspect.isclass(imported) if own_class else callable(imported)
    if not is_kind or owner is None or not f"{owner.__name__}.".startswith((*ALLOWED, *extra)):
        kind = "a class" if own_class else "a function or class"
        raise ConfigError(
            f"_target_ {target} is not allowed: it must be {kind} that a module in {', '.join((*ALLOWED, *extra))} "
            f"defines, not one that it imports ({imported!r})"
        )
    return imported
