"""The classes that a config names as `_target_`: their signatures, and the objects that are built from config nodes.

Signatures of kleiber's classes are read from their source, so a config is checked in milliseconds and without torch;
so are those of an extension whose package lists them in EXPORTS, as kleiber's packages do. Functions, classes,
dataclasses, inheritance and aliases are understood; every other type counts as an object. Other targets are imported,
if `kleiber.config.extensions` allows their names.

A config contains what a user sets. Values that only the run has, such as the size of the vocabulary, are `SUPPLIED`:
`build` passes them by name to every target whose signature has an argument of that name.
"""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.extensions import (
    Parameter,
    Signature,
    extension_prefixes,
    import_target,
    package_folders,
    runtime_signature,
)
from kleiber.types import Config, typed_names

if TYPE_CHECKING:
    from omegaconf import DictConfig

PACKAGE = Path(__file__).resolve().parents[1]
# Modules without torch, whose names in annotations have their real values.
PLAIN_MODULES = (
    "typing", "collections.abc", "pathlib", "annotated_types", "kleiber.types", "kleiber.types.access",
    "kleiber.config.stages",
)  # fmt: skip
WITHOUT_ARGUMENTS = ("nn.Module", "Module", "pl.Callback", "Callback", "Protocol", "object", "Generic")
# Arguments that only a run can supply; the check rejects a config that sets one of them.
SUPPLIED = frozenset(
    {
        "batch_tokens", "branch_steps", "config_hash", "corpus", "evaluate", "folder", "meter", "open_model",
        "record", "run_config", "run_group", "run_id", "run_name", "run_seed", "save_dir", "vocabulary", "vocab_size",
    }
)  # fmt: skip


class ObjectMeta(type):
    """Returns `Object` for each of its attributes and subscripts, as in `np.ndarray` or `Float[Tensor, "batch"]`."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("_"):
            raise AttributeError(name)
        return Object

    def __getitem__(cls, item: object) -> type:
        return Object


class Object(metaclass=ObjectMeta):
    """Stands for every type that no YAML value can have; such an argument is a node with a `_target_`."""


def signature(target: str) -> Signature:
    """Returns the signature of a dotted name. Raises ConfigError for a name that does not exist or is not allowed."""
    return _signature(target, extension_prefixes())


def is_read_from_source(target: str) -> bool:
    """Whether a target, whose package is allowed, belongs to a package with EXPORTS and need not be imported."""
    return target.startswith("kleiber.") or (
        target.startswith(extension_prefixes()) and bool(exports(target.rpartition(".")[0]))
    )


@cache
def _signature(target: str, extra: tuple[str, ...]) -> Signature:
    if not is_read_from_source(target):
        return runtime_signature(import_target(target, extra), target.rpartition(".")[2])
    where, node = _find_export(target)
    if isinstance(node, ast.FunctionDef):
        return _of_function(where, node, node.name, skip=0)
    assert isinstance(node, ast.ClassDef), f"{target} is exported, but not defined"
    return _of_class(where, node)


@cache
def _module(name: str) -> ast.Module | None:
    file = _file(name)
    return ast.parse(file.read_text()) if file else None


def _file(name: str) -> Path | None:
    """The file of a module or package of kleiber or of an extension; None where there is none."""
    packages = [("kleiber", PACKAGE)] if name.startswith("kleiber.") or name == "kleiber" else package_folders()
    for package, folder in packages:
        if name == package or name.startswith(f"{package}."):
            path = folder.joinpath(*name.removeprefix(package).split(".")[1:])
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file():
                    return file
    return None


def _find_export(target: str) -> tuple[str, ast.AST | None]:
    """Returns the module and the syntax node that define an exported name. Raises ConfigError for other names."""
    package, _, name = target.rpartition(".")
    names = exports(package)
    if name not in names:
        raise ConfigError(f"_target_ {target} does not exist in {package}.{did_you_mean(name, names)}")
    return _definition(f"{package}.{names[name]}", name)


def argument(node: Config, name: str) -> Any:
    """Returns the value of an argument of a node: as set, or its default."""
    parameter = signature(str(node["_target_"])).parameters.get(name)
    return node.get(name, parameter.default if parameter else None)


def class_attribute(target: str, name: str) -> Any:
    """Returns the value of an attribute of a class, its own or inherited; of kleiber's classes, read from the source.

    target  the exported name of the class, such as `kleiber.objectives.DPO`

    Returns None where neither the class nor a base class sets the attribute to a literal. Raises ConfigError for a name
    that is not exported or not allowed.
    """
    if not is_read_from_source(target):
        return inspect.getattr_static(import_target(target, extension_prefixes()), name, None)
    return _attribute_in_source(target, name)


@cache
def _attribute_in_source(target: str, name: str) -> object:
    where, node = _find_export(target)
    return _attribute(where, node, name)


def _attribute(module: str, node: ast.AST | None, name: str) -> object:
    if not isinstance(node, ast.ClassDef):
        return None
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign) and item.value is not None:
            targets = item.targets if isinstance(item, ast.Assign) else [item.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return ast.literal_eval(item.value)
    values = [_attribute(*_definition(module, ast.unparse(base)), name) for base in node.bases]
    return next((value for value in values if value is not None), None)


@cache
def exports(package: str) -> dict[str, str]:
    """Returns the names that a config may have as targets of a package, each with the module that defines it.

    It is empty for a package that does not list them in EXPORTS.
    """
    tree = _module(package)
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "EXPORTS":
            return ast.literal_eval(node.value)
    return {}


def _definition(module: str, name: str) -> tuple[str, ast.AST | None]:
    """Returns the module and the syntax node that define a name of a module, following imports within kleiber."""
    tree = _module(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node.value
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _imported(str(node.module), alias.name)
    return module, None


def _imported(module: str, name: str) -> tuple[str, ast.AST | None]:
    """Where a name that is imported from a module is defined, as `_definition` returns it."""
    if not module.startswith(("kleiber.", *extension_prefixes())):
        return module, None
    offered = _offered(module).get(name)
    if offered is not None:
        return _imported(f"{module}.{offered}", name)
    return (module, None) if module in PLAIN_MODULES else _definition(module, name)


@cache
def _offered(module: str) -> dict[str, str]:
    """The names that a package offers from its modules."""
    file = _file(module)
    if file is None or file.name != "__init__.py":
        return {}
    return {**exports(module), **typed_names(module, str(file))}


def _of_class(module: str, node: ast.ClassDef) -> Signature:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(module, item, node.name, skip=1)
    inherited, is_open = _inherited_parameters(module, node)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return Signature(node.name, {**inherited, **_fields(module, node)}, is_open)
    return Signature(node.name, inherited, is_open)


def _inherited_parameters(module: str, node: ast.ClassDef) -> tuple[dict[str, Parameter], bool]:
    parameters, is_open = dict[str, Parameter](), False
    for base in reversed(node.bases):
        text = ast.unparse(base).split("[")[0]
        where, base_node = _definition(module, text)
        if isinstance(base_node, ast.ClassDef):
            base_signature = _of_class(where, base_node)
            parameters.update(base_signature.parameters)
            is_open |= base_signature.open
        else:
            is_open |= text not in WITHOUT_ARGUMENTS
    return parameters, is_open


def _fields(module: str, node: ast.ClassDef) -> dict[str, Parameter]:
    parameters = {}
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            text = "" if item.value is None else ast.unparse(item.value)
            if "ClassVar" not in ast.unparse(item.annotation) and "init=False" not in text:
                parameters[item.target.id] = _parameter(module, item.annotation, item.value)
    return parameters


def _of_function(module: str, node: ast.FunctionDef, name: str, skip: int) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + list(node.args.defaults)
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += [*zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    parameters = {arg.arg: _parameter(module, arg.annotation, default) for arg, default in pairs}
    return Signature(name, parameters, node.args.kwarg is not None)


def _parameter(module: str, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    value, is_literal = None, default is None
    if default is not None:
        with suppress(ValueError):
            value, is_literal = ast.literal_eval(default), True
    return Parameter(Any if annotation is None else _type(module, annotation), default is None, value, is_literal)


def _type(module: str, annotation: ast.expr) -> object:
    """Returns an annotation of kleiber's source as a type, with `Object` for classes."""
    code = compile(ast.Expression(annotation), module, "eval")
    try:
        evaluated = eval(code, {"__builtins__": {}}, AnnotationNames(module))
    except Exception:  # an annotation of another form does not restrict the value
        return Any
    return _type(module, ast.parse(evaluated, mode="eval").body) if isinstance(evaluated, str) else evaluated


class AnnotationNames(dict[str, object]):
    """The names of a module that its annotations use."""

    def __init__(self, module: str) -> None:
        super().__init__({kind.__name__: kind for kind in (int, float, str, bool, list, dict, tuple, set)}, object=Any)
        self.module = module

    def __missing__(self, name: str) -> object:
        where, node = _definition(self.module, name)
        if where in PLAIN_MODULES:
            return pkgutil.resolve_name(f"{where}:{name}")
        return _type(where, node) if isinstance(node, ast.expr) else Object


def build(node: DictConfig | Config, **available: Any) -> Any:
    """Returns the object of a node, which gets those of the `available` values that its signature has arguments for.

    Raises ConfigError, and imports and builds nothing, where the node holds a class that a config may not name, or an
    interpolation: those of a command line are resolved by then, and those of a file may be a stranger's.
    """
    assert available.keys() <= SUPPLIED, f"add to SUPPLIED: {sorted(available.keys() - SUPPLIED)}"
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    check_buildable(plain)
    assert isinstance(plain, dict)
    parameters = inspect.signature(get_object(plain["_target_"])).parameters
    # The values go to the target directly: within a config, OmegaConf would convert dataclasses.
    try:
        target = instantiate(plain, _convert_="all", _partial_=True)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):  # of a node within this one, about a value of the user's
            raise error.__cause__ from None
        raise
    return target(**{name: value for name, value in available.items() if name in parameters})


def check_buildable(value: object, path: str = "") -> None:
    """Checks a node of the config (a mapping, a list or a plain value) and everything below it.

    path  key of the node in the config, such as model.mlp, which the error names; "" for the whole config

    Raises ConfigError for a `_target_` that a config may not name and for an interpolation.
    """
    children: Iterable[tuple[object, object]] = enumerate(value) if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping):
        children = value.items()
        if "_target_" in value:
            signature(str(value["_target_"]))
    for key, child in children:
        check_buildable(child, f"{path}.{key}" if path else str(key))
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{path}={value} is an interpolation: write the value itself")
