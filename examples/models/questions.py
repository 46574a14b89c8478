"""Writes conversations about Python: what a function or a class does, answered by the first sentence of its docstring.

    python questions.py questions.jsonl

The docstrings are those of the standard library and of the packages that kleiber needs, read from their source files
and never imported. Each class, function and method with one has a question, of a form chosen by its name.
"""

import ast
import inspect
import json
import re
import sys
import zlib
from pathlib import Path

from kleiber.data.builtin import DEFINITIONS, source_files

QUESTIONS = {
    "function": ("What does {name} do?", "What is the function {name} for?", "Explain {name} in one sentence."),
    "class": ("What is {name}?", "What is the class {name} for?", "Explain {name} in one sentence."),
}
LEAST, MOST = 20, 240  # characters of an answer


def definitions(node: ast.AST, path: str = "") -> list[tuple[str, ast.AST]]:
    """Returns the public functions, methods and classes below a node with their dotted names."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS) and not child.name.startswith("_"):
            name = f"{path}.{child.name}" if path else child.name
            found += [(name, child), *definitions(child, name)]
    return found


def answer(docstring: str) -> str:
    """Returns the first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split()).replace("``", "").replace("`", "")
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)[0].strip()
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def conversations(file: Path) -> list[dict[str, str]]:
    """Returns a conversation for each definition in a source file that has a docstring."""
    try:
        module = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    package = file.parent.name if file.stem == "__init__" else file.stem
    rows = []
    for name, definition in definitions(module):
        text = answer(ast.get_docstring(definition) or "")
        if LEAST <= len(text) <= MOST and ">>>" not in text and text.isascii():
            forms = QUESTIONS["class" if isinstance(definition, ast.ClassDef) else "function"]
            question = forms[zlib.crc32(name.encode()) % len(forms)].format(name=f"{package}.{name}")
            rows.append({"prompt": question, "response": text})
    return rows


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python questions.py FILE.jsonl")
    rows = {row["prompt"]: row for file in source_files() for row in conversations(Path(file))}
    lines = [json.dumps(row) for row in rows.values()]
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines):,} conversations in {sys.argv[1]}")


if __name__ == "__main__":
    main()
