"""The order of the house: a module imports from its own floor or floors below, and studies import no torch."""

import ast
from pathlib import Path

import pytest

import kleiber

ROOT = Path(kleiber.__file__).parent
FLOORS = {
    0: "types budget sums errors settings signatures summary build imports hub console preemption metrics hooks "
    "archive",
    1: "nn",
    2: "models",
    3: "objectives data evals adapters",
    4: "retention optim optimizers step checkpoint callbacks lit loggers trainer score sharding fsdp",
    5: "identity folder catalog leaf_rows rate chain opened origin plan tree retain matrix drift stage report load",
    6: "settle fit_together check run compose usage cell ranks pool preload sweep archived_cells launch studies cli "
    "assess interchange quote probe prices cost speed coordinates",
    7: "task slurm rays",
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names.split()}
SIBLINGS = {"objectives", "data", "evals", "adapters"}
MODULES = [p for p in sorted(ROOT.rglob("*.py")) if p.parent != ROOT or p.name not in ("__init__.py", "__main__.py")]


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Every module that is imported anywhere in the file, within functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = part(path)
    assert own in FLOOR, f"{own} stands on no floor: put it in FLOORS"
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] == "kleiber" and len(pieces) > 1 and pieces[1] in FLOOR:
            other = pieces[1]
            assert FLOOR[other] <= FLOOR[own], f"{own} (floor {FLOOR[own]}) imports {other} (floor {FLOOR[other]})"
            assert other == own or not {own, other} <= SIBLINGS, f"{own} and {other} are siblings and must not meet"


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) in ("studies", "catalog")], ids=lambda p: p.name)
def test_a_law_can_be_refitted_without_torch(path):
    assert not {name.split(".")[0] for name in imports(path)} & {"torch", "lightning"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_one_sitting_and_a_function_one_screen(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{node.name} is longer than a screen"
