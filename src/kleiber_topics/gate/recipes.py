"""Recipes of a stream: the command that trains, where it runs, and what a proposal may not change."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kleiber.records import file_sha256
from kleiber.types import Json

SEED = "{seed}"
GATES = ("seed", "name", "root", "resume")  # keys that kleiber gate sets
MEASURING = (*GATES, "data", "eval", "evals", "tokenizer")  # keys that change what is measured


@dataclass(frozen=True)
class Recipe:
    """What is run to train and measure.

    command    a command line with {seed}; "" for overrides of kleiber
    overrides  of `kleiber train`
    commit     of git, in whose worktree it runs; "" for the folder itself
    """

    command: str = ""
    overrides: tuple[str, ...] = ()
    commit: str = ""

    @property
    def key(self) -> str:
        """A short hash of the recipe."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def text(self) -> str:
        """The recipe as people write it."""
        line = self.command or "kleiber train " + " ".join(self.overrides)
        return line + (f" (at {self.commit[:10]})" if self.commit else "")

    @classmethod
    def from_json(cls, node: Json) -> Recipe:
        """Returns the recipe of a row."""
        return cls(node["command"], tuple(node["overrides"]), node["commit"])

    def to_json(self) -> Json:
        """Returns the recipe as a row has it."""
        return {"command": self.command, "overrides": [*self.overrides], "commit": self.commit}

    @classmethod
    def of_overrides(cls, text: str) -> Recipe:
        """Returns a plain recipe of kleiber. Raises ValueError for overrides that kleiber gate sets."""
        lines = tuple(shlex.split(text))
        for line in lines:
            if key_of(line) in GATES:
                raise ValueError(f"--overrides {line}: kleiber gate sets {key_of(line)} itself; remove it")
        return cls(overrides=lines)

    def with_overrides(self, text: str) -> Recipe:
        """Returns the recipe with further overrides, which replace those of the same key.

        Raises ValueError for a key that changes what is measured.
        """
        lines = shlex.split(text)
        keys = [key_of(line) for line in lines]
        for line, key in zip(lines, keys, strict=True):
            if key.partition(".")[0].partition("/")[0] in MEASURING:
                raise ValueError(
                    f"--overrides {line}: {key} changes what is measured, so the two results would not compare; "
                    "start a stream of its own with kleiber gate init"
                )
        kept = [line for line in self.overrides if key_of(line) not in keys]
        return replace(self, overrides=(*kept, *lines))

    def with_values(self, values: Mapping[str, str]) -> Recipe:
        """Returns a recipe of kleiber with other values of some keys."""
        kept = [line for line in self.overrides if key_of(line) not in values]
        return replace(self, overrides=(*kept, *(f"{name}={value}" for name, value in values.items())))

    def filled(self, seed: int, reserve: str, keys: Mapping[str, str]) -> str:
        """Returns the command line with its placeholders filled in."""
        text = self.command.replace(SEED, str(seed)).replace("{reserve}", reserve)
        for name, value in keys.items():
            text = text.replace(f"{{{name}}}", value)
        return text


def key_of(override: str) -> str:
    """Returns the key of an override."""
    return override.lstrip("+~").partition("=")[0]


def check_command(command: str, reserve: str, keys: Sequence[str]) -> None:
    """Raises ValueError for a command without the placeholders that it needs."""
    for place in (SEED, *(("{reserve}",) if reserve else ()), *(f"{{{name}}}" for name in keys)):
        if place not in command:
            raise ValueError(
                f"--command {command!r} must contain {place}, which kleiber gate fills in for every run"
                + (", so that no seed is chosen by hand" if place == SEED else "")
            )


def sources(command: str, folder: Path) -> dict[str, str]:
    """Returns the sha256 of each file that a command line names, such as train.py."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    files = {name: folder / name for name in words if not Path(name).is_absolute()}
    return {name: file_sha256(path) for name, path in files.items() if path.is_file()}


def protected(patterns: Sequence[str], folder: Path) -> dict[str, str]:
    """Returns the sha256 of the files of the patterns of --protect. Raises ValueError for one that matches nothing."""
    hashes: dict[str, str] = {}
    for pattern in patterns:
        files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        if not files:
            raise ValueError(f"--protect {pattern} matches no file in {folder}")
        hashes |= {str(path.relative_to(folder)): file_sha256(path) for path in files}
    return hashes


def changed_files(hashes: Mapping[str, str], folder: Path) -> list[str]:
    """Returns the files whose content is not that of their hashes, or that are gone."""
    return [
        name
        for name, expected in hashes.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != expected
    ]


def git(folder: Path, *words: str) -> str:
    """Runs git in a folder and returns what it prints. Raises ValueError with git's message if it fails."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words)} in {folder}: {done.stderr.strip() or 'failed'}")
    return done.stdout.strip()


def commit_of(ref: str, folder: Path) -> str:
    """Returns the commit of a git ref. Raises ValueError for one that does not exist."""
    if re.match(r"-", ref):
        raise ValueError(f"--ref {ref} must be a branch, a tag or a commit")
    return git(folder, "rev-parse", "--verify", f"{ref}^{{commit}}")


def worktree(home: Path, folder: Path, commit: str) -> Path:
    """Returns the folder in which a recipe runs: `folder`, or its place in a worktree of a commit below `home`."""
    if not commit:
        return folder
    top = top_of(folder)
    place = home / "worktrees" / commit[:12]
    if not (place / ".git").exists():
        git(folder, "worktree", "prune")
        git(folder, "worktree", "add", "--force", "--detach", str(place.absolute()), commit)
    return place.absolute() / folder.absolute().resolve().relative_to(top)


def top_of(folder: Path) -> Path:
    """Returns the top folder of the checkout that a folder is in."""
    return Path(git(folder, "rev-parse", "--show-toplevel")).resolve()


def module_folders(folder: Path, place: Path) -> list[str]:
    """Returns the folders of a checkout from which this Python imports, as `place`, in a worktree of it, has them.

    Without them, a package that is installed from the checkout would be imported as it is there, not as in the commit.
    """
    if place == folder:
        return []
    top, other = top_of(folder), top_of(place)
    inside = [Path(path).resolve() for path in sys.path if path and Path(path).resolve().is_relative_to(top)]
    return [str(path) for path in (other / path.relative_to(top) for path in inside) if path.is_dir()]
