"""The page of what kleiber's packages offer to other packages: every name with the first line of its docstring."""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path

from kleiber.types import typed_names
from pages.tables import cell, table

PACKAGES = (
    "types", "config", "data", "models", "nn", "objectives", "evals", "records", "charts", "runs", "studies",
    "studies.designs",
)  # fmt: skip


def page() -> str:
    """Returns the Markdown of the page."""
    parts = [
        "# What extensions import\n\nAn extension of yours imports these names, as the "
        "[topics](../topics/index.md) do, "
        "from the packages and not from the modules in them: `from kleiber.data import TextCorpus`. Modules may move; "
        "these names stay where they are."
    ]
    for package in PACKAGES:
        rows = [[f"`{name}`", cell(summary(module, name))] for name, module in sorted(names(package).items())]
        parts.append(f"## kleiber.{package} {{#{package.replace('.', '-')}}}\n\n{table(['name', 'what it is'], rows)}")
    return "\n\n".join(parts) + "\n"


def names(package: str) -> dict[str, str]:
    """Returns the names that a package offers, each with the dotted name of the module that defines it."""
    name = f"kleiber.{package}"
    file = str(importlib.import_module(name).__file__)
    return {each: f"{name}.{module}" for each, module in typed_names(name, file).items()}


def summary(module: str, name: str) -> str:
    """Returns the first line of the docstring of a function or class; of a constant, its comment or value."""
    source, tree = _read(module)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            line = source[node.lineno - 1]
            return line.partition("# ")[2] or f"`{line.partition('= ')[2]}`"
    return ""


@cache
def _read(module: str) -> tuple[list[str], ast.Module]:
    text = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)
