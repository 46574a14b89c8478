"""Runs what a proposal needs and decides it. All that happens is a row of the log, so a killed proposal goes on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kleiber.inference import interval_elsewhere, interval_of_pairs, interval_of_screen
from kleiber.records import print_line
from kleiber.types import Json
from kleiber_topics.gate import chain
from kleiber_topics.gate.recipes import Recipe, changed_files, module_folders, worktree
from kleiber_topics.gate.runner import NOTE, Outcome, RunFailed, run_command, run_kleiber
from kleiber_topics.gate.state import (
    PAIR_NEW,
    PAIR_PLAIN,
    PLAIN,
    RESERVE,
    SCREEN,
    SIZE,
    Proposal,
    State,
    replay,
    seed_of,
)

DRIFTED = 3.0  # standard deviations by which a plain run that is repeated may differ
FAILURES = 2  # of one run, after which the proposal is discarded
ABANDONED = "abandoned"  # how the reason of a proposal begins that its user did not go on with
DIVERGED = "it measured"  # how the reason of a run begins that ended with nan or infinity
FEWEST_CONFIRMING = 3  # pairs on the reserve, and at another size


class BudgetSpent(Exception):
    """The stream has had as many runs as --budget-runs allows."""


class Decided(Exception):
    """A proposal is decided before its test ends. The values are those of its row."""

    def __init__(self, decision: str, why: str, **values: object) -> None:
        super().__init__(why)
        self.row: Json = {"decision": decision, "why": why, **values}


@dataclass
class Gate:
    """A stream of proposals in a folder.

    rows  of its log
    """

    home: Path
    rows: list[Json]

    @classmethod
    def load(cls, home: Path) -> Gate:
        """Opens a stream and checks its log. Raises ValueError where that is not what was written."""
        path = home / chain.FILE
        rows = chain.read_rows(path)
        if not rows or rows[0]["kind"] != "init":
            raise ValueError(f"{path} does not begin with the settings of a stream: run kleiber gate init")
        chain.check_stamps(path, rows, sorted((home / "runs").glob(f"*/{NOTE}")))
        return cls(home, rows)

    @property
    def state(self) -> State:
        """What the log says."""
        return replay(self.rows)

    @property
    def nonce(self) -> str:
        """What the seeds of the stream follow from."""
        return str(self.rows[0]["nonce"])

    def append(self, kind: str, **values: object) -> Json:
        """Adds a row to the log."""
        return chain.append(self.home / chain.FILE, self.rows, kind, **values)

    def folder_of(self, recipe: Recipe) -> Path:
        """Returns the folder in which a recipe runs."""
        return worktree(self.home, Path(self.state.settings.folder), recipe.commit)

    def check_sources(self, recipe: Recipe, files: dict[str, str], owner: str) -> None:
        """Raises ValueError where the files that a command names have changed since they were noted."""
        changed = changed_files(files, self.folder_of(recipe))
        if changed:
            raise ValueError(
                f"{', '.join(changed)} belongs to {owner} and has changed since it was first run: restore it, and "
                "propose the change as a file of another name with --command, or as a commit with --ref"
            )

    def check_protected(self, recipe: Recipe, name: str) -> None:
        """Raises ValueError, and notes it in the log, where a proposal changes a file of --protect."""
        changed = changed_files(self.state.settings.protect, self.folder_of(recipe))
        if changed:
            self.append("refusal", name=name, files=changed)
            raise ValueError(
                f"{name} changes {', '.join(changed)}, which --protect keeps as it is: it measures the result"
            )

    def measure(self, role: str, recipe: Recipe, number: int, reserve: str = "", size: bool = False) -> Json:
        """Runs a recipe at the seed of a number and adds the run to the log.

        Raises BudgetSpent, RunFailed, and Decided for a changed recipe that failed too often.
        """
        proposal = self.state.open
        self.require_budget()
        seed = seed_of(self.nonce, number)
        index = len(self.rows)
        home = self.home / "runs" / f"{index:05d}-{role.replace(' ', '-')}-{recipe.key}-{seed}"
        note = {**chain.stamp(self.rows), "recipe": recipe.text, "seed": seed, "role": role}
        place = f"{role} run at seed {seed}"
        try:
            outcome = self.execute(recipe, seed, home, note, reserve, size)
            if not math.isfinite(outcome.value):
                raise RunFailed(f"{DIVERGED} {outcome.value}")
        except RunFailed as error:
            self.append("failure", role=role, seed=seed, recipe=recipe.key, error=str(error), folder=home.name)
            failed = [] if proposal is None else [row for row in proposal.failures if row["role"] == role]
            if proposal is not None and recipe == proposal.recipe:
                if str(error).startswith(DIVERGED):
                    raise Decided("discard", f"diverged: {place}: {error}") from None
                if len(failed) + 1 >= FAILURES:
                    raise Decided("discard", f"failed {len(failed) + 1} times: {place}: {error}") from None
            raise RunFailed(f"{place}: {error}") from None
        print_line(f"  {place}: {outcome.value:.6g} ({outcome.seconds:.0f} s)", err=True)
        return self.append(
            "run", role=role, seed=seed, seed_number=number, recipe=recipe.key, value=outcome.value,
            seconds=round(outcome.seconds, 3), folder=home.name,
        )  # fmt: skip

    def require_budget(self) -> None:
        """Raises BudgetSpent where the stream may have no further run."""
        state = self.state
        if state.settings.budget is not None and state.runs >= state.settings.budget:
            raise BudgetSpent

    def execute(self, recipe: Recipe, seed: int, home: Path, note: Json, reserve: str, size: bool) -> Outcome:
        """Runs a recipe once. Raises RunFailed."""
        settings, folder = self.state.settings, self.folder_of(recipe)
        modules = module_folders(Path(settings.folder), folder)
        if not recipe.command:
            larger = settings.confirm_at if size else {}
            overrides = recipe.with_values(larger).overrides
            return run_kleiber(overrides, seed, folder, home, note, settings.metric, reserve, settings.timeout, modules)
        keys = {**settings.values, **(settings.confirm_at if size else {})}
        command = recipe.filled(seed, reserve, keys)
        return run_command(command, folder, home, note, settings.metric, settings.take, settings.timeout, modules)

    def fill_pool(self) -> None:
        """Runs the plain recipe as often as the next proposal needs, and again where it may have drifted."""
        state = self.state
        while state.stream.missing_plain > len(state.plain):
            self.measure(PLAIN, state.recipe, state.seeds)
            state = self.state
        if state.plain:
            values = [run["value"] for run in state.plain]
            if not state.stream.noise.df and len(set(values)) < 2:
                raise ValueError(
                    f"all {len(values)} plain runs measured {values[0]:g}: the command does not use its seed, or "
                    "prints too few digits, so there is no noise to compare a gain with"
                )
            self.append("pool", runs=len(values))
        if self.state.reruns_due and self.state.stream.pool:
            self.require_budget()
            self.watch_drift()

    def watch_drift(self) -> None:
        """Runs the plain recipe at an earlier seed again, and notes whether it measures the same."""
        state = self.state
        seed, gain = state.stream.pool[0]
        home = self.home / "runs" / f"{len(self.rows):05d}-drift-{state.recipe.key}-{seed}"
        note = {**chain.stamp(self.rows), "recipe": state.recipe.text, "seed": seed, "role": "drift"}
        outcome = self.execute(state.recipe, seed, home, note, "", False)
        before, after = state.gain(gain), outcome.value
        drifted = not abs(after - before) <= DRIFTED * math.sqrt(2) * state.stream.noise.run_sd
        self.append(
            "drift", seed=seed, before=before, after=after, drifted=drifted, decided=len(state.decisions),
            seconds=round(outcome.seconds, 3), folder=home.name,
        )  # fmt: skip
        if drifted:
            print_line(
                f"the plain recipe drifted from {before:.6g} to {after:.6g} at seed {seed}: it is run anew", err=True
            )
            self.fill_pool()

    def propose(self, name: str, recipe: Recipe, files: dict[str, str]) -> Json:
        """Runs and decides a proposal, or goes on with it; returns the row of its decision.

        Raises RunFailed where a run fails, and Preempted for a signal; the same proposal then goes on.
        """
        state = self.state
        for row in state.decisions:
            if row["name"] == name and not row["why"].startswith(ABANDONED):
                if row["recipe"] != recipe.to_json():
                    raise ValueError(
                        f"--name {name} is the name of an earlier proposal of another change: choose another"
                    )
                return row
        if state.open is not None and (state.open.name != name or state.open.recipe != recipe):
            why = f"{ABANDONED}: another proposal began before it was decided"
            self.decide(state.open, {"decision": "discard", "why": why})
        if self.state.open is None:
            begin = {"name": name, "recipe": recipe.to_json(), "files": files, "plain": state.recipe.text}
            try:
                self.fill_pool()
            except BudgetSpent:
                self.append("proposal", **begin)
                return self.decide(self.proposal, undecided_by_budget(state))
            self.append("proposal", **begin)
        try:
            outcome = self.judge()
        except Decided as decided:
            outcome = decided.row
        except BudgetSpent:
            outcome = undecided_by_budget(state)
        return self.decide(self.proposal, outcome)

    @property
    def proposal(self) -> Proposal:
        """The proposal that has begun and is not decided."""
        proposal = self.state.open
        assert proposal is not None
        return proposal

    def judge(self) -> Json:
        """Runs the screen, the test and the confirmations of the proposal that has begun; returns how they ended."""
        if self.proposal.error is None:
            why = self.screen()
            if why:
                return {"decision": "discard", "why": why}
            self.append("test", name=self.proposal.name, error=self.state.stream.budget.next_error)
        verdict = self.test()
        if verdict != "keep":
            whys = {"stop": "no sign of a gain on fresh seeds", "undecided": "a gain was neither shown nor excluded"}
            return {"decision": "discard" if verdict == "stop" else "undecided", "why": whys[verdict]}
        return self.confirm()

    def screen(self) -> str:
        """Runs the changed recipe at seeds of plain runs; returns why it is discarded, or "" where it goes on."""
        state = self.state
        stream, pool = state.stream, state.stream.pool
        while True:
            runs = self.proposal.of(SCREEN)
            gains = [state.gain(run["value"]) for run in runs]
            paired = [gain - plain for gain, (_, plain) in zip(gains, pool, strict=False)]
            equal = bool(paired) and not any(paired)
            if equal and len(paired) > 1:
                why = "identical: it measures exactly what the plain recipe does at the same seeds"
                raise Decided("discard", why, value=0.0, lo=0.0, hi=0.0, n=len(paired))
            verdict = stream.rules.screen(stream.plain, gains, paired, stream.noise) if runs else "run"
            if verdict == "keep":
                return ""
            if verdict == "stop" and not equal:  # one equal result of few digits may be chance
                return "no sign of a gain on the first runs"
            at = len(runs)
            number = self.number_of(pool[at][0]) if at < len(pool) else self.state.seeds
            self.measure(SCREEN, self.proposal.recipe, number)

    def number_of(self, seed: int) -> int:
        """Returns the number of a seed that was used."""
        return next(row["seed_number"] for row in self.rows if row["kind"] == "run" and row["seed"] == seed)

    def test(self) -> str:
        """Runs pairs at fresh seeds until the test ends; returns how."""
        state, error = self.state, self.proposal.error
        assert error is not None
        while True:
            gains = self.gains(PAIR_PLAIN, PAIR_NEW)
            verdict = state.stream.rules.test_pairs(gains, state.stream.noise, error) if gains else "run"
            if verdict != "run":
                return verdict
            self.run_pair(PAIR_PLAIN, PAIR_NEW)

    def gains(self, plain: str, changed: str) -> list[float]:
        """Returns the gain of each pair of two roles."""
        sign = self.state.settings.sign
        return [sign * (new - old) for _, old, new in self.proposal.pairs(plain, changed)]

    def run_pair(self, plain: str, changed: str, reserve: str = "", size: bool = False) -> None:
        """Runs the plain and the changed recipe at a fresh seed, or the second one where the first was run."""
        proposal, state = self.proposal, self.state
        old, new = proposal.of(plain), proposal.of(changed)
        if len(old) == len(new):
            old = [*old, self.measure(plain, state.recipe, state.seeds, reserve, size)]
        self.measure(changed, proposal.recipe, old[len(new)]["seed_number"], reserve, size)

    def confirm(self) -> Json:
        """Confirms a change whose test was passed, on the reserve and at another size, where the stream has them."""
        settings, values = self.state.settings, {}
        for role, reserve, size in ((RESERVE, settings.reserve, False), (SIZE, "", bool(settings.confirm_at))):
            if not reserve and not size:
                continue
            count = max(FEWEST_CONFIRMING, len(self.gains(PAIR_PLAIN, PAIR_NEW)))
            names = f"{role} plain", f"{role} changed"
            while len(self.gains(*names)) < count:
                self.run_pair(*names, reserve, size)
            gains = self.gains(*names)
            ends = interval_elsewhere(gains, self.state.stream.noise, settings.level)
            values[role] = difference(settings.sign, gains, ends)
            if role == SIZE:
                values[role] |= self.shrinkage(gains, ends)
                values[role]["at"] = settings.confirm_at
            where = "the reserve" if role == RESERVE else format_values(settings.confirm_at)
            if ends[1] < 0 or (role == RESERVE and statistics.fmean(gains) <= 0):
                return {"decision": "discard", "why": f"not confirmed: no gain on {where}", **values}
            if role == RESERVE and ends[0] <= 0:
                return {"decision": "undecided", "why": f"a gain on {where} was neither shown nor excluded", **values}
        return {
            "decision": "keep",
            "why": "a gain on fresh seeds" + " and on the reserve" * bool(settings.reserve),
            **values,
        }

    def shrinkage(self, gains: Sequence[float], ends: tuple[float, float]) -> Json:
        """Returns whether the gain at another size is smaller than at the ordinary one."""
        ordinary = statistics.fmean(self.gains(PAIR_PLAIN, PAIR_NEW))
        says = "smaller" if ends[1] < ordinary else "larger" if ends[0] > ordinary else "not shown to differ"
        return {"ratio": statistics.fmean(gains) / ordinary if ordinary else None, "gain": says}

    def decide(self, proposal: Proposal, outcome: Json) -> Json:
        """Adds the decision about a proposal to the log, with its estimate and what is left of the error."""
        state = self.state
        stream, settings = state.stream, state.settings
        after = stream.budget if proposal.error is None else stream.budget.after(outcome["decision"] == "keep")
        gains = [settings.sign * (new - old) for _, old, new in proposal.pairs()]
        screened = [state.gain(run["value"]) for run in proposal.of(SCREEN)]
        values: Json = dict.fromkeys(("value", "lo", "hi", "n"))
        if gains:
            ends = interval_of_pairs(gains, stream.noise, settings.rules().pairs, settings.level)
            values = difference(settings.sign, gains, ends)
        elif screened and stream.plain:
            shift = statistics.fmean(stream.plain)
            ends = interval_of_screen(stream.plain, screened, stream.noise, settings.level)
            values = difference(settings.sign, [gain - shift for gain in screened], ends)
        plain = [settings.sign * old for _, old, _ in proposal.pairs()] or stream.plain
        return self.append(
            "decision", name=proposal.name, recipe=proposal.row["recipe"], **{**values, **outcome},
            baseline=settings.sign * statistics.fmean(plain) if plain else None, error=proposal.error,
            error_spent=after.spent, error_left=after.left, runs=len(proposal.runs) + len(proposal.failures),
            seconds=round(sum(run["seconds"] for run in proposal.runs), 3),
        )  # fmt: skip


def undecided_by_budget(state: State) -> Json:
    """Returns how a proposal ends whose stream may have no further runs."""
    return {"decision": "undecided", "why": f"the budget of {state.settings.budget} runs is spent"}


def difference(sign: float, gains: Sequence[float], ends: tuple[float, float]) -> Json:
    """Returns a mean gain as the difference changed - plain, with the ends of its interval; None for infinite ones."""
    lo, hi = sorted(sign * end for end in ends)
    finite = math.isfinite(lo) and math.isfinite(hi)
    return {
        "value": sign * statistics.fmean(gains), "lo": lo if finite else None, "hi": hi if finite else None,
        "n": len(gains),
    }  # fmt: skip


def format_values(values: dict[str, str]) -> str:
    """Returns settings as text, such as depth=8."""
    return ", ".join(f"{name}={value}" for name, value in values.items())
