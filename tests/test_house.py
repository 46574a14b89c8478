"""The layout of the project: tests mirror modules, files and functions are short, and configs name exported classes."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import REPOSITORY
from yaml import safe_load

import kleiber
from kleiber.config.compose import config_files, list_choices
from kleiber.types import typed_names

PACKAGE, TESTS = Path(kleiber.__file__).parent, REPOSITORY / "tests"
TOPICS = PACKAGE.parent / "kleiber_topics"
# By the folder of their tests: of kleiber as its packages, of topics as folders of `tests/topics`.
MODULES = {
    base / path.relative_to(package).with_suffix("")
    for package, base in ((PACKAGE, Path()), (TOPICS, Path("topics")))
    for path in package.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
}
# Tests of no module of ours: of the documentation, of faults, of a cluster, of a GPU, and (files beside this one) of
# the project.
NO_ROOMS = {"compat", "docs", "faults", "gpu", "slurm"}
WHOLE_PROJECT = {
    "api", "house", "config_headers", "configs", "example_extension", "experiments", "readme", "results", "wheel",
}  # fmt: skip
FILE_LINES, FUNCTION_LINES = 400, 60
ALL_TOPICS = 18


def test_every_module_has_a_test_file_of_its_name():
    missing = [str(m) for m in sorted(MODULES) if not (TESTS / m.parent / f"test_{m.name}.py").is_file()]
    assert missing == []


def test_every_test_file_is_named_after_a_module_or_a_declared_study():
    strays = []
    for path in sorted(TESTS.rglob("test_*.py")):
        room, name = path.relative_to(TESTS).parent, path.stem.removeprefix("test_")
        names = {module.name for module in MODULES if module.parent == room}
        if room == Path():
            names |= WHOLE_PROJECT
        if room == Path("studies"):  # studies that are declared have a config in place of a module
            names |= {*list_choices("study")}
        if room.parent == Path("topics"):
            names |= {f"study_{file.stem}" for file in (TOPICS / room.name / "conf/study").glob("*.yaml")}
        if room.parts[:1] and room.parts[0] in NO_ROOMS:
            continue
        if not any(name == module or name.startswith(f"{module}_") for module in names):
            strays.append(str(path.relative_to(TESTS)))
    assert strays == []


def too_long(root: Path) -> list[str]:
    """Files and functions of a folder that are longer than the limits, with their number of lines."""
    offenders = []
    for path in sorted(root.rglob("*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root)
        if (lines := text.count("\n")) > FILE_LINES:
            offenders.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    offenders.append(f"{name}: {node.name} has {lines} lines")
    return offenders


@pytest.mark.parametrize("package", [PACKAGE, TOPICS])
def test_files_and_functions_of_the_packages_are_short(package):
    assert too_long(package) == []


@pytest.mark.slow
def test_files_and_functions_of_the_tests_are_short():
    assert too_long(TESTS) == []


def test_every_exported_name_resolves():
    broken = []
    found = [
        *pkgutil.walk_packages([str(PACKAGE)], "kleiber."),
        *pkgutil.walk_packages([str(TOPICS)], "kleiber_topics."),
    ]
    packages = [m.name for m in found if m.ispkg]
    for package in map(importlib.import_module, ["kleiber", *packages]):
        for name, module in getattr(package, "EXPORTS", {}).items():
            if not hasattr(importlib.import_module(f"{package.__name__}.{module}"), name):
                broken.append(f"{package.__name__}.{name}")
            elif not hasattr(package, name):
                broken.append(f"{package.__name__}.{name} by its package")
    assert broken == []


def imports_of_topics() -> Iterator[tuple[str, str, str]]:
    """What topics import of kleiber: the file, and the package or module with the name."""
    for path in sorted(TOPICS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "kleiber":
                for alias in node.names:
                    yield str(path.relative_to(TOPICS)), str(node.module), alias.name
            elif isinstance(node, ast.Import):
                yield from ((str(path), name.name, "") for name in node.names if name.name.split(".")[0] == "kleiber")


def test_topics_import_only_what_packages_of_kleiber_offer():
    strays = [
        f"{file}: {module}.{name}"
        for file, module, name in imports_of_topics()
        if name not in getattr(importlib.import_module(module), "__all__", ())
    ]
    assert strays == []


def test_what_packages_offer_is_imported_by_a_topic():
    """A name that no topic needs any more leaves the list that a reader has to learn."""
    if len([*TOPICS.glob("*/__init__.py")]) < ALL_TOPICS:
        pytest.skip("a topic was deleted, which may have been the only one to import a name")
    imported = {(module, name) for _, module, name in imports_of_topics()}
    idle = []
    for module in {module for module, _ in imported}:
        package = importlib.import_module(module)
        offered = typed_names(module, str(package.__file__)).keys() - getattr(package, "EXPORTS", {}).keys()
        idle += [f"{module}.{name}" for name in offered if (module, name) not in imported]
    assert idle == []


def targets(node: object) -> Iterator[str]:
    """Every `_target_` of a nested config."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def test_every_target_of_a_config_is_exported_by_its_package():
    strays = []
    for place, path in config_files().items():
        for target in targets(safe_load(path.read_text(encoding="utf-8"))):
            package, _, name = target.rpartition(".")
            module = importlib.import_module(package)
            names = module.EXPORTS if package.startswith("kleiber") else vars(module)
            if name not in names:
                strays.append(f"{place}: {target}")
    assert strays == []


def test_every_path_in_the_documentation_exists():
    rooms, choices = {path.name for path in PACKAGE.iterdir()}, {f"{place}.yaml" for place in config_files()}
    missing = []
    for page in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")):
        for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]*(?:\.[a-z_.]+)?)`", page.read_text(encoding="utf-8")):
            if path in choices or path.startswith(("train/", "eval/")):  # metrics
                continue
            places = [REPOSITORY / path, REPOSITORY / "conf" / path, REPOSITORY / "src" / path]
            if path.split("/")[0] in rooms:
                places.append(PACKAGE / path)
            if not any(place.exists() for place in places):
                missing.append(f"{page.name}: {path}")
    assert missing == []
