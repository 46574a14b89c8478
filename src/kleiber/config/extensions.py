"""Packages of the reader: their classes may stand in a config as `_target_`, and their `conf/` joins the search path.

The reader allows a package in the environment variable KLEIBER_EXTENSIONS, as `mylab,otherlab`, or by installing one
that has an entry point in the group `kleiber.extensions`. A config cannot allow any, so a run folder or checkpoint of
somebody else builds nothing that its reader has not allowed. A package that the variable names need not be installed:
it is also looked up in the working folder, after all other places.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pkgutil
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kleiber.config.errors import ConfigError

ALLOWED = ("kleiber.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")
UNDECLARED = "lightning."  # packages whose classes do not declare what they access (`kleiber.types.access`)
TORCH_OPTIMIZERS = "torch.optim."
OPTIMIZERS = {"SGD": "sgd", "Adam": "adamw", "AdamW": "adamw", "Muon": "muon"}  # kleiber's choice for that of PyTorch
VARIABLE = "KLEIBER_EXTENSIONS"
GROUP = "kleiber.extensions"  # of entry points


@dataclass(frozen=True)
class Parameter:
    """One argument of a target. `default` is None where the source does not have a literal (`is_literal`)."""

    annotation: object = Any
    required: bool = True
    default: Any = None
    is_literal: bool = True


@dataclass(frozen=True)
class Signature:
    """The arguments of a target; `open` if it takes others too, or if that cannot be determined."""

    name: str
    parameters: dict[str, Parameter]
    open: bool = False


def extension_packages() -> tuple[str, ...]:
    """Returns the names of the packages that the reader allows, those of the variable first.

    Raises ConfigError for what is not the name of a package.
    """
    names = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"{VARIABLE}={name} must be names of packages, separated by commas")
    here = os.getcwd()
    if names and here not in sys.path:
        sys.path.append(here)  # last, so that nothing in this folder replaces an installed package
    # A folder that somebody sent may contain the metadata of a package; in the working folder they allow nothing.
    installed = _installed(tuple(path for path in sys.path if path not in ("", here)))
    return tuple(dict.fromkeys([*names, *installed]))


@cache
def _installed(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the packages with an entry point in GROUP whose metadata lie in one of these folders."""
    distributions = importlib.metadata.distributions(path=list(paths))
    return tuple(entry.module for package in distributions for entry in package.entry_points if entry.group == GROUP)


def extension_prefixes() -> tuple[str, ...]:
    """Returns the beginnings of names that the reader allows, such as `mylab.`."""
    return tuple(f"{name}." for name in extension_packages())


def package_folders() -> list[tuple[str, Path]]:
    """Returns the dotted name and the folder of each allowed package and of each package in it.

    Raises ConfigError for a package that cannot be found.
    """
    folders = []
    for name in extension_packages():
        try:
            spec = importlib.util.find_spec(name)
        except ImportError:  # of the package that contains it
            spec = None
        if spec is None:
            raise ConfigError(
                f"extension {name}: there is no package {name}, neither installed nor in {os.getcwd()}: install it, "
                f"run the command in the folder that contains it, or correct {VARIABLE}"
            )
        for folder in map(Path, spec.submodule_search_locations or ()):
            inner = sorted(file.parent for file in folder.glob("*/__init__.py"))
            folders += [(name, folder), *((f"{name}.{sub.name}", sub) for sub in inner)]
    return folders


def conf_dir() -> Path:
    """Returns the folder of train.yaml: that of the repository if there is one, else the copy in the package."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent.parent / "conf", package / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"conf/train.yaml is missing in {package}: reinstall kleiber")


def extension_folders() -> list[Path]:
    """Returns the folders `conf/` of the allowed packages and of the packages in them.

    Raises ConfigError for a package that cannot be found.
    """
    return [folder / "conf" for _, folder in package_folders() if (folder / "conf").is_dir()]


def offers(kind: str) -> dict[str, str]:
    """Returns what the allowed packages, and the packages in them, offer of a kind: dotted names by key.

    kind  COMMANDS of `kleiber`, NAMED data, AUDITS of `kleiber data`, LOOKUPS of `kleiber generate`, LAWS of
          `kleiber fit` or REWARDS of objective=grpo: the assignment in the `__init__.py` of a package that lists them,
          as COMMANDS = {"judge": "command.judge"}

    Nothing is imported. Raises ConfigError for a package that cannot be found.
    """
    return {
        key: f"{package}.{name}"
        for package, folder in package_folders()
        for key, name in _assigned(folder / "__init__.py", kind).items()
    }


@cache
def _assigned(file: Path, name: str) -> dict[str, str]:
    """Returns the literal that a file assigns to a name; an empty one where it assigns none."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else ():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    return {}


def import_offer(kind: str, key: str, place: str) -> Callable[..., object]:
    """Imports the class or function that a package offers under a key, see `offers`.

    place  of the name, which an error begins with

    Raises ConfigError where no allowed package offers it.
    """
    names = offers(kind)
    if key not in names:
        raise ConfigError(
            f"{place} must be {', '.join(names) or 'offered by a package'}, or install the package that offers it, or "
            f"set {VARIABLE} to its name"
        )
    offer = _import(names[key], place)
    if not callable(offer):
        raise ConfigError(f"{place}: {names[key]} must be a class or a function, and is {offer!r}")
    return offer


def require_allowed(target: str, extra: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for a name that begins neither with one of ALLOWED nor with one of `extra`."""
    if target.startswith(TORCH_OPTIMIZERS):
        choice = OPTIMIZERS.get(target.rpartition(".")[2], "adamw, lion, muon or sgd")
        raise ConfigError(
            f"_target_ {target} is not allowed, because an optimizer also sets learning rates by width and clips "
            f"gradients: write optimizer={choice}, or a class of yours with lr, clip and build, as "
            f"kleiber.optimizers.SGD has, which {VARIABLE} allows"
        )
    if not target.startswith((*ALLOWED, *extra)):
        raise ConfigError(
            f"_target_ {target} is not allowed: it must begin with {', '.join((*ALLOWED, *extra))}; if you trust the "
            f"package {target.partition('.')[0]}, set the environment variable {VARIABLE}={target.partition('.')[0]}"
        )


def declares_access(target: str) -> bool:
    """Whether a class declares which of its arguments read, run or write something, or can do none of it."""
    return not target.startswith(UNDECLARED)


def import_target(target: str, extra: tuple[str, ...]) -> Any:
    """Imports a class, or a function of Lightning, by its dotted name.

    Raises ConfigError for a name that is not allowed, where it cannot be imported, and for what an allowed module only
    imports from another one.
    """
    require_allowed(target, extra)
    imported = _import(target, f"_target_ {target}")
    own_class = target.startswith(extra)
    is_kind = inspect.isclass(imported) if own_class else callable(imported)
    if not is_kind or not _is_defined_in(imported, (*ALLOWED, *extra)):
        kind = "a class" if own_class else "a function or class"
        raise ConfigError(
            f"_target_ {target} is not allowed: it must be {kind} that a module in {', '.join((*ALLOWED, *extra))} "
            f"defines, not one that it imports ({imported!r})"
        )
    return imported


def import_function(name: str, key: str) -> Callable[..., object]:
    """Imports a function that an allowed package defines, such as a law, by its dotted name.

    key  what the reader set to the name, which an error begins with

    Raises ConfigError for the name of another package and for what is not a function.
    """
    prefixes = extension_prefixes()
    if not name.startswith(prefixes):
        package = name.partition(".")[0]
        raise ConfigError(f"{key} is not allowed: if you trust the package {package}, set {VARIABLE}={package}")
    function = _import(name, key)
    if not inspect.isfunction(function) or not _is_defined_in(function, prefixes):
        raise ConfigError(f"{key} must be a function that a module in {', '.join(prefixes)} defines ({function!r})")
    return function


def _import(name: str, key: str) -> object:
    """Imports a name of a module. Raises ConfigError, which begins with `key`, where that fails."""
    module, _, attribute = name.rpartition(".")
    try:
        return pkgutil.resolve_name(f"{module}:{attribute}")
    except ImportError as error:
        raise ConfigError(
            f"{key} cannot be imported ({error}): check the spelling, or install the package that defines it"
        ) from None
    except AttributeError:
        raise ConfigError(f"{key} cannot be imported: {module} has no {attribute}; check the spelling") from None


def _is_defined_in(imported: object, prefixes: tuple[str, ...]) -> bool:
    owner = inspect.getmodule(imported)
    return owner is not None and f"{owner.__name__}.".startswith(prefixes)


@cache
def runtime_signature(target: Callable[..., object], name: str) -> Signature:
    """Returns the signature of an imported class or function."""
    hints = _hints(target)
    parameters, is_open = {}, False
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
        elif parameter.kind is not parameter.VAR_POSITIONAL:
            required = parameter.default is parameter.empty
            annotation, default = hints.get(parameter.name, Any), None if required else parameter.default
            parameters[parameter.name] = Parameter(annotation, required, default)
    return Signature(name, parameters, is_open)


def _hints(target: Callable[..., object]) -> dict[str, object]:
    """Returns the types of the arguments of a class or function; none if a name in them is imported for checkers only.

    Fields of a dataclass are evaluated where they are declared: its `__init__` repeats those of a base class, whose
    module has names that its own need not import.
    """
    source = target
    if inspect.isclass(target):
        owner = next(base for base in target.__mro__ if "__init__" in vars(base))
        source = owner if "__dataclass_fields__" in vars(owner) else owner.__init__
    try:
        return typing.get_type_hints(source, include_extras=True)
    except NameError:
        return {}
