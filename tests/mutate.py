"""Tells whether a module's own tests notice that one of its functions does nothing.

    python tests/mutate.py [number] [seed] [part of a path]

Draws `number` functions of the package whose body has more than three lines (by default 10, by the hash of the commit),
replaces the body of one after another by `raise NotImplementedError` in a temporary copy of the tree, and runs the
fast tests in the files of its module. A mutant that no test notices survives.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PACKAGE = Path("src/kleiber")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def candidates(path: Path) -> list[tuple[str, str]]:
    """(name, source with its body replaced) of every function of a file whose body has more than three lines."""
    text = path.read_text(encoding="utf-8")
    lines, found = text.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, Function):
            continue
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body or (body[-1].end_lineno or 0) - body[0].lineno < 3:
            continue
        inside = " " * body[0].col_offset + "raise NotImplementedError\n"
        begin = min(line.lineno for line in (body[0], *getattr(body[0], "decorator_list", [])))
        found.append((node.name, "".join([*lines[: begin - 1], inside, *lines[body[-1].end_lineno :]])))
    return found


def own_tests(path: Path) -> list[str]:
    """The test files of a module: test_<module>.py and test_<module>_<aspect>.py in its room."""
    room = Path("tests") / path.relative_to(PACKAGE).parent
    return [str(file) for pattern in ("", "_*") for file in sorted(room.glob(f"test_{path.stem}{pattern}.py"))]


def verdict(tree: Path, path: Path) -> str:
    """What the module's tests say in that tree."""
    tests = own_tests(path)
    if not tests:
        return "survives: no test file"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    paths = [str(tree / "src"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    code = subprocess.run(command, cwd=tree, env=env, capture_output=True).returncode
    return {0: "survives", 1: "noticed", 5: "survives: no fast test"}.get(code, f"pytest ends with {code}")


def copy_checkout(tree: Path) -> None:
    """Copies all files that git knows, and links the shared data beside the checkout."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, tree / name)
    shared = REPOSITORY.parent / "shared"  # without which some tests are skipped
    if shared.is_dir():
        (tree.parent / "shared").symlink_to(shared)


def main(number: int, seed: str, part: str) -> int:
    """Prints a line a mutant and their count; returns how many survive."""
    os.chdir(REPOSITORY)
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if part in str(path)]
    functions = [(path, name, text) for path in modules for name, text in candidates(path)]
    drawn = random.Random(seed).sample(functions, min(number, len(functions)))
    unchanged: dict[Path, str] = {}
    alive = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy_checkout(tree)
        for path, name, text in drawn:
            if path not in unchanged:
                unchanged[path] = verdict(tree, path)
            if unchanged[path] == "noticed":
                print(f"fails without a mutant  {path.relative_to(PACKAGE)}", flush=True)
                continue
            original = (tree / path).read_bytes()
            (tree / path).write_text(text, encoding="utf-8")
            result = verdict(tree, path)
            (tree / path).write_bytes(original)
            alive += result.startswith("survives")
            print(f"{result:24}{path.relative_to(PACKAGE)}: {name}", flush=True)
    print(f"{len(drawn) - alive} of {len(drawn)} noticed (seed {seed})")
    return alive


if __name__ == "__main__":
    head = ["git", "rev-parse", "HEAD"]
    commit = subprocess.run(head, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    arguments = dict(enumerate(sys.argv[1:]))
    sys.exit(min(main(int(arguments.get(0, 10)), arguments.get(1, commit), arguments.get(2, "")), 1))
