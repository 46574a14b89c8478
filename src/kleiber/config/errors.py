"""What a user did wrong, as one message: `main` prints it and exits with 2. It catches nothing."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A config, a command line or a file that cannot be right; the message names the key and the cure."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` Did you mean 'x'?`, or nothing where no choice is near."""
    names = list(dict.fromkeys(choices))
    near = get_close_matches(word, names, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
