"""What the rows of a log say: the plain recipe, the noise, the error budget, and the proposal that is open."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from kleiber.inference import Stream
from kleiber.types import Json
from kleiber_topics.gate.recipes import Recipe
from kleiber_topics.gate.settings import Settings

PLAIN, SCREEN, PAIR_PLAIN, PAIR_NEW = "plain", "screen", "pair plain", "pair changed"
RESERVE, SIZE = "reserve", "size"  # roles of confirmations, each followed by " plain" or " changed"
MOST_SEED = 2**31 - 1


@dataclass
class Proposal:
    """A proposal that has begun.

    row    its row in the log
    runs   the rows of its runs
    error  of its test; None before the test
    """

    row: Json
    runs: list[Json] = field(default_factory=list)
    error: float | None = None
    failures: list[Json] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name that its user gave."""
        return self.row["name"]

    @property
    def recipe(self) -> Recipe:
        """The changed recipe."""
        return Recipe.from_json(self.row["recipe"])

    def of(self, role: str) -> list[Json]:
        """Returns its runs of a role, in their order."""
        return [run for run in self.runs if run["role"] == role]

    def pairs(self, plain: str = PAIR_PLAIN, changed: str = PAIR_NEW) -> list[tuple[int, float, float]]:
        """Returns seed, plain value and changed value of each pair of runs."""
        news = {run["seed"]: run["value"] for run in self.of(changed)}
        return [(run["seed"], run["value"], news[run["seed"]]) for run in self.of(plain) if run["seed"] in news]


@dataclass
class State:
    """A stream after some rows of its log.

    stream     what decides, in gains
    recipe     the plain recipe
    files      hashes of the files that its command names
    name       of the proposal that it came from; "" for the first one
    decisions  rows of decisions
    open       the proposal that has begun and is not decided
    runs       number of runs so far
    seeds      number of seeds that were used
    plain      rows of plain runs that are not yet in the pool
    drift      rows of what re-runs of the plain recipe showed
    """

    settings: Settings
    stream: Stream
    recipe: Recipe
    files: dict[str, str]
    name: str = ""
    decisions: list[Json] = field(default_factory=list)
    open: Proposal | None = None
    runs: int = 0
    seeds: int = 0
    plain: list[Json] = field(default_factory=list)
    drift: list[Json] = field(default_factory=list)

    @property
    def reruns_due(self) -> bool:
        """Whether the plain recipe has to be run again at an earlier seed, to see whether it drifted."""
        last = self.drift[-1]["decided"] if self.drift else 0
        return len(self.decisions) - last >= RERUN

    def gain(self, value: float) -> float:
        """Returns a value as a gain: larger is better."""
        return self.settings.sign * value


RERUN = 20  # decisions after which the plain recipe is run again


def replay(rows: Sequence[Json]) -> State:
    """Returns the state after the rows of a log."""
    settings = Settings.from_json(rows[0]["settings"])
    stream = Stream(settings.rules(), settings.budget_of_errors())
    state = State(settings, stream, settings.recipe, settings.sources)
    for row in rows[1:]:
        STEPS[row["kind"]](state, row)
    return state


def add_run(state: State, row: Json) -> None:
    """A run was measured."""
    state.runs += 1
    state.seeds = max(state.seeds, row["seed_number"] + 1)
    if row["role"] == PLAIN:
        state.plain.append(row)
    elif state.open is not None:
        state.open.runs.append(row)


def add_pool(state: State, row: Json) -> None:
    """Plain runs entered the pool, so that a proposal can be compared with them."""
    runs = [(run["seed"], state.gain(run["value"])) for run in state.plain]
    state.stream = state.stream.with_plain(runs)
    state.plain = []


def begin_proposal(state: State, row: Json) -> None:
    """A proposal began."""
    state.open = Proposal(row)


def begin_test(state: State, row: Json) -> None:
    """A proposal passed the screen, and its test got a share of the error."""
    if state.open is not None:
        state.open.error = row["error"]


def end_proposal(state: State, row: Json) -> None:
    """A proposal was decided; a kept one is the plain recipe from now on."""
    proposal, kept = state.open, row["decision"] == "keep"
    state.decisions.append(row)
    state.open = None
    if proposal is None or proposal.error is None:
        return
    pairs = [(seed, state.gain(plain), state.gain(new)) for seed, plain, new in proposal.pairs()]
    state.stream = state.stream.after_test(pairs, kept)
    if kept:
        state.recipe, state.name, state.files = proposal.recipe, proposal.name, proposal.row["files"]


def add_failure(state: State, row: Json) -> None:
    """A run failed."""
    state.runs += 1
    if state.open is not None:
        state.open.failures.append(row)


def add_drift(state: State, row: Json) -> None:
    """The plain recipe was run again; where it drifted, the earlier runs no longer count."""
    state.runs += 1
    state.drift.append(row)
    if row["drifted"]:
        state.stream = state.stream.without_pool()


def ignore(state: State, row: Json) -> None:
    """A proposal was refused; nothing was run."""


STEPS = {
    "run": add_run, "pool": add_pool, "proposal": begin_proposal, "test": begin_test, "decision": end_proposal,
    "failure": add_failure, "drift": add_drift, "refusal": ignore,
}  # fmt: skip


def seed_of(nonce: str, number: int) -> int:
    """Returns the seed of a number: nobody can choose it, and it is in every program's range."""
    return int.from_bytes(hashlib.sha256(f"{nonce}:{number}".encode()).digest()[:4], "big") % MOST_SEED + 1
