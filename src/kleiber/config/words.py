"""The words of other programs for what keys of kleiber say, from conf/_words.yaml: errors name the key to write."""

from __future__ import annotations

from functools import cache

import yaml

from kleiber.config.extensions import conf_dir

NO_KEY = "none: "


@cache
def words() -> dict[str, tuple[str, str]]:
    """Returns for each word the program that it is of, and what to write in place of it."""
    table = yaml.safe_load((conf_dir() / "_words.yaml").read_text(encoding="utf-8"))
    return {name: (program, ours) for program, entries in table.items() for name, ours in entries.items()}


def in_our_words(key: str, choice: str = "") -> str:
    """Returns a sentence, after a space, with what to write for a key of another program; "" where the key is none.

    key     as on the command line, such as trainer.max_epochs
    choice  of a group, such as llama
    """
    names = [f"{key}={choice}"] if choice else [key, key.rpartition(".")[2]]
    for name in names:
        if name in words():
            program, ours = words()[name]
            if ours.startswith(NO_KEY):
                return f" Nothing replaces {name} of {program}: {ours.removeprefix(NO_KEY)}."
            return f" For {name} of {program} write {ours}."
    return ""
