"""What is fixed when a stream begins: the plain recipe, the metric, the error, and what a proposal may not change."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kleiber.inference import ERROR_KINDS, ErrorBudget, ErrorKind, Rules
from kleiber.types import Json
from kleiber_topics.gate.recipes import Recipe, check_command, protected, sources
from kleiber_topics.gate.runner import TAKES, Take, check_metric

NAME = re.compile(r"\w[\w./]*")  # of a placeholder, or of a key such as model.depth
BETTER = ("lower", "higher")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a stream.

    recipe      the plain recipe
    metric      pattern of the metric in what a command prints; the name of a metric for overrides of kleiber
    better      which values are better: lower or higher
    folder      in which commands run
    level       confidence level: 1 - error
    error       what the error bounds: keep, the share of false keeps; stream, the chance of any
    horizon     number of proposals that are planned
    seeds       runs of the first look
    max_seeds   most runs of a changed recipe
    budget      most runs of the stream; None for no limit
    timeout     seconds that a run may take; None for no limit
    reserve     what fills {reserve} when a change is confirmed; "" for nothing
    values      what fills further placeholders
    confirm_at  what fills them when a change is confirmed at another size
    protect     sha256 of the files that no proposal may change
    sources     sha256 of the files that the plain command names
    """

    recipe: Recipe
    metric: str
    better: str = "lower"
    folder: str = "."
    level: float = 0.9
    error: ErrorKind = "keep"
    horizon: int = 200
    seeds: int = 1
    max_seeds: int = 12
    budget: int | None = None
    take: Take = "once"
    timeout: float | None = None
    reserve: str = ""
    values: dict[str, str] = field(default_factory=dict)
    confirm_at: dict[str, str] = field(default_factory=dict)
    protect: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.better not in BETTER:
            raise ValueError(f"--better {self.better} must be lower or higher")
        if not 0.5 <= self.level < 1:
            raise ValueError(f"--level {self.level} must be at least 0.5 and below 1, such as 0.9")
        if self.error not in ERROR_KINDS:
            raise ValueError(f"--error {self.error} must be one of {', '.join(ERROR_KINDS)}")
        if self.take not in TAKES:
            raise ValueError(f"--take {self.take} must be one of {', '.join(TAKES)}")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise ValueError(f"--timeout {self.timeout} must be a number of seconds > 0")
        for name in self.confirm_at if self.recipe.command else ():
            if name not in self.values:
                raise ValueError(f"--confirm-at {name}=... needs the ordinary value: add --set {name}=VALUE")
        if self.recipe.command:
            check_metric(self.metric)
            check_command(self.recipe.command, self.reserve, [*self.values])
        elif self.values:
            raise ValueError("--set fills placeholders of --command, and overrides have none: write the value there")
        self.budget_of_errors()
        self.rules()

    @property
    def sign(self) -> float:
        """1 if higher values are better, -1 otherwise: the gain of a value is sign * value."""
        return 1.0 if self.better == "higher" else -1.0

    def rules(self) -> Rules:
        """Returns how many runs a proposal may take."""
        return Rules(first=self.seeds, max_seeds=self.max_seeds)

    def budget_of_errors(self) -> ErrorBudget:
        """Returns the error budget at the beginning of the stream."""
        return ErrorBudget(self.error, round(1 - self.level, 12), self.horizon)

    def to_json(self) -> Json:
        """Returns the settings as the first row of the log has them."""
        return {**asdict(self), "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, node: Json) -> Settings:
        """Returns the settings of the first row of a log."""
        return cls(**{**node, "recipe": Recipe.from_json(node["recipe"])})


def pairs_of(items: Sequence[str], option: str) -> dict[str, str]:
    """Returns KEY=VALUE items as a dictionary. Raises ValueError, which names the option, for another form."""
    pairs = [item.partition("=") for item in items]
    for item, (name, equals, _) in zip(items, pairs, strict=True):
        if not equals or not NAME.fullmatch(name) or name in ("seed", "reserve"):
            raise ValueError(
                f"{option} {item} must have the form KEY=VALUE; {{KEY}} is in the command, or KEY a key of kleiber"
            )
    return {name: value for name, _, value in pairs}


def with_hashes(settings: Json, patterns: Sequence[str]) -> Json:
    """Returns settings with the hashes of protected files and of those that the command names."""
    folder = Path(settings["folder"])
    files = sources(settings["recipe"].command, folder)
    return {**settings, "protect": protected(patterns, folder), "sources": files}


def require_own(path: Path) -> None:
    """Raises ValueError for a log that another user wrote: its commands would run as this user."""
    if path.stat().st_uid != os.getuid():
        raise ValueError(
            f"{path} belongs to another user, and its commands would run with your rights: copy what you trust"
        )
