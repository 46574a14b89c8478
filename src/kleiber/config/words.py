"""What errors about keys name to write: our words for those of other programs, from conf/_words.yaml, and the choice
that has a key.
"""

from __future__ import annotations

import re
from functools import cache

import yaml

from kleiber.config.extensions import conf_dir, extension_folders

NO_KEY = "none: "
EXAMPLE = re.compile(r"\{([^{}]*)\}")  # a value in whose place an error puts the one that was given
MISSING = "???"  # the value of a key that must be set
PACKAGE = "# @package "  # the first line of a choice that does not stand under the key of its group


@cache
def _table() -> dict[str, tuple[str, str]]:
    table = yaml.safe_load((conf_dir() / "_words.yaml").read_text(encoding="utf-8"))
    return {name: (program, ours) for program, entries in table.items() for name, ours in entries.items()}


def words() -> dict[str, tuple[str, str]]:
    """Returns for each word the program that it is of, and what to write in place of it."""
    return {name: (program, EXAMPLE.sub(r"\1", ours)) for name, (program, ours) in _table().items()}


def in_our_words(key: str, choice: str = "", value: object = None) -> str:
    """Returns a sentence, after a space, with what to write for a key of another program; "" where the key is none.

    key     as on the command line, such as trainer.max_epochs
    choice  of a group, such as llama
    value   of the key, which takes the place of the example where ours means the same
    """
    fits = isinstance(value, int | float | str) and not isinstance(value, bool)
    names = [f"{key}={choice}"] if choice else [key, key.rpartition(".")[2]]
    for name in names:
        if name in _table():
            program, ours = _table()[name]
            ours = EXAMPLE.sub(lambda example: str(value) if fits else example[1], ours)
            if ours.startswith(NO_KEY):
                return f" Nothing replaces {name} of {program}: {ours.removeprefix(NO_KEY)}."
            return f" For {name} of {program} write {ours}."
    return ""


def choices_with(group: str, key: str) -> list[str]:
    """Returns the choices of a config group whose files have a key, such as `text` for `path` of `data`.

    Those where the key must be set, if there are any; those of nested folders are left out.
    """
    folders = [folder / group for folder in (conf_dir(), *extension_folders())]
    files = [file for folder in folders for file in sorted(folder.glob("[!_]*.yaml"))]
    nodes = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    having = {name: node[key] for name, node in nodes.items() if isinstance(node, dict) and key in node}
    return [name for name, value in having.items() if value == MISSING] or [*having]


def package_of(group: str) -> str:
    """Returns the key of the config under which the choices of a group stand, such as model.mlp.router.

    Some choices of a group set keys beside it as well, and stand one level higher.
    """
    files = sorted((conf_dir() / group).glob("[!_]*.yaml"))
    first = [file.read_text(encoding="utf-8").partition("\n")[0] for file in files]
    packages = [line.removeprefix(PACKAGE) for line in first if line.startswith(PACKAGE)]
    return max(packages, key=len, default=group.replace("/", "."))
