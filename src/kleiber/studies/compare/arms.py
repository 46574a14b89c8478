"""Arms of a comparison at each of their budgets: measures by learning rate and seed, and whether they were tuned alike.

A run belongs to an arm by `study.arm` of its config. Arms may be compared if they were tuned alike: as many learning
rates with the same spacing. The runs as a whole decide nothing before all of them have ended, nor when they are looked
at more often than was planned.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from kleiber.config.errors import Status
from kleiber.inference.contrasts import Cell
from kleiber.inference.optimum import Optimum, at_best_rate
from kleiber.records.catalog import Run
from kleiber.studies.compare.costs import costs_of_leaf, facts_of_arm, measured_values, with_readable_latency
from kleiber.studies.compare.labels import LOSS, arm_from_text
from kleiber.studies.compare.measures import LOADS, Measures, expert_loads, with_pattern
from kleiber.studies.compare.places import SAME_TOKENS, Place, refuse_twins
from kleiber.types import Config, Json, Row
from kleiber.types.score import Score

LRS = 5  # least number of learning rates of a tuned arm
SEEDS = 3  # least number of seeds of a tuned arm
SPACING = 0.1  # relative difference up to which two ratios of neighboring rates count as equal
FINISH = "finish its runs: repeat the command of the sweep"
START = "start:"  # prefix of measures before the first step of the last stage
ArmOf = Callable[[Run], str | None]  # the arm of a run; None for a run that belongs to no arm


@dataclass(frozen=True)
class Arm:
    """One arm at one number of tokens.

    values_by_rate    the measure by which the arm was tuned, by rate and seed; a run that diverged has the worst
    best_lr           the rate with the best mean, among the rates at which the most seeds did not diverge
    untuned_because   why the arm is not tuned; empty when it is tuned
    facts             parameters, tokens, FLOPs, memory (medians of its runs), and the speeds of the fastest run
    measure           the name of that measure
    measures_at_best  all measures of the runs at the best rate, by name and seed
    scores            unit, direction and label of each measure
    speeds            training tokens per second of its runs
    """

    name: str
    values_by_rate: Mapping[float, Mapping[int, float]]
    best_lr: float
    untuned_because: str
    facts: Mapping[str, float]
    measure: str = LOSS
    measures_at_best: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    higher_is_better: bool = False
    scores: Measures = field(default_factory=Measures)
    speeds: Sequence[float] = ()

    @property
    def best_values(self) -> Mapping[int, float]:
        """The measure by which the arm was tuned, at the best learning rate, by seed."""
        return self.values_by_rate[self.best_lr]

    @property
    def mean(self) -> float:
        return sum(self.best_values.values()) / len(self.best_values)

    @property
    def grid(self) -> list[float]:
        """The learning rates with the most seeds, in ascending order."""
        most = max(map(len, self.values_by_rate.values()))
        return sorted(lr for lr, by_seed in self.values_by_rate.items() if len(by_seed) == most)

    @cached_property
    def optimum(self) -> Optimum:
        """The measure by which the arm was tuned, at its best rate, by the rates of `grid`."""
        seeds = [*self.best_values]
        complete = [lr for lr in self.grid if {*self.values_by_rate[lr]} >= {*seeds}]
        table = [[self.values_by_rate[lr][seed] for seed in seeds] for lr in complete]
        return at_best_rate(complete, table, self.higher_is_better)

    def values(self, measure: str, vertex: bool = False) -> Mapping[int, float]:
        """A measure at the best learning rate, by seed.

        vertex  whether that by which the arm was tuned has the mean of `optimum`; the differences between seeds are
                those of the best cell
        """
        if measure != self.measure:
            return self.measures_at_best.get(measure, {})
        if not vertex:
            return self.best_values
        shift = self.optimum.value - self.mean
        return {seed: value + shift for seed, value in self.best_values.items()}

    def cells(self, measure: str) -> list[Cell]:
        """The finite values by seed of a measure, that of tuning at the rates within one step of the best one."""
        at = self.grid.index(self.best_lr) if self.best_lr in self.grid else 0
        near = [self.values_by_rate[lr] for lr in self.grid[max(at - 1, 0) : at + 2]]
        cells = near if measure == self.measure else [self.measures_at_best.get(measure, {})]
        finite: list[Cell] = []
        for cell in cells:
            if cell and all(map(math.isfinite, cell.values())):
                finite.append({**cell})
        return finite

    def row(self) -> Json:
        """A row of the table of arms."""
        summary = {"arm": self.name, self.measure: self.mean, "seeds": len(self.best_values), "best lr": self.best_lr}
        summary |= {"at the vertex": self.optimum.value, "vertex lr": self.optimum.rate} if self.optimum.fitted else {}
        tuning = {"tuned": not self.untuned_because, "why not": self.untuned_because}
        loads = {name: each for name, each in self.measures_at_best.items() if name in LOADS}
        means = {name: statistics.fmean(by_seed.values()) for name, by_seed in loads.items()}
        return {**summary, **tuning, **with_readable_latency(self.facts), **means}


def arm_name(run: Run) -> str | None:
    """The arm that the design of a study gave to a run; None for a run of no arm."""
    return (run.config.get("study") or {}).get("arm")


def planned_arms(configs: Sequence[Config]) -> list[str]:
    """The names of the arms of the designs that planned these runs, in their order."""
    designs = [(config.get("design") or {}).get("arms") or {} for config in configs]
    return list(dict.fromkeys(name for arms in designs for name, arm in arms.items() if arm is not None))


def arms_in_order(runs: Sequence[Run], arm_of: ArmOf = arm_name) -> list[str]:
    """The names of all arms, also of those without a finished run: in the order of the design, others in that of runs.

    Planned arms without any run are among them where the design named the arms.
    """
    names = dict.fromkeys(name for name in map(arm_of, runs) if name is not None)
    planned = planned_arms([run.config for run in runs])
    return list(dict.fromkeys([*(planned if names.keys() & {*planned} else ()), *names]))


def leaf_rows(runs: Sequence[Run], arm_of: ArmOf = arm_name) -> list[Json]:
    """A row for each leaf of each run that belongs to an arm: its metrics, costs and expert loads.

    A run that diverged has one row without a loss. Raises ValueError where no run that has ended belongs to an arm.
    """
    rows = []
    for run in runs:
        arm = arm_of(run)
        if arm is None or run.status not in (Status.FINISHED, Status.DIVERGED):
            continue
        leaves = run.leaves if run.finished else []
        for row, stage in zip(run.leaf_rows(), leaves or [{}], strict=False):
            lr = row["lr"] if row["lr"] is not None else run.config["optimizer"]["lr"]
            measured = {**row, **costs_of_leaf(run.config["model"], stage), **expert_loads(run.rows, stage.get("name"))}
            measured |= start_scores(stage)
            rows.append({**measured, "arm": arm, "lr": lr, "seed": run.config["seed"]})
    if not rows:
        raise ValueError("no run here belongs to an arm: this study reads cells that its own design made")
    return rows


def start_scores(stage: Json) -> dict[str, float]:
    """The metrics before the first step of a stage, with the prefix START; LOSS is that of its task, if it has one."""
    scores = stage.get("start_metrics") or {}
    names = [f"val/{task}/loss" for task in stage.get("tasks") or ()]
    losses = [scores[name] for name in names if name in scores]
    before = scores | ({LOSS: losses[0]} if len(losses) == 1 else {})
    return {f"{START}{name}": value for name, value in before.items()}


def read_ladders(
    runs: Sequence[Run],
    measure: str = LOSS,
    arm_of: ArmOf = arm_name,
    min_arms: int = 2,
    higher_is_better: bool = False,
) -> dict[str, list[Arm]]:
    """Returns each arm at every number of tokens (to 2 %) that it was trained for, in ascending order.

    Arms are in the order of `arms_in_order`. Raises ValueError for fewer than `min_arms` arms with the measure, and as
    `refuse_twins`.
    """
    rows = [with_pattern(row, measure) for row in leaf_rows(runs, arm_of)]
    configs, scores = {run.name: run.config for run in runs}, Measures(runs)
    usable = [row for row in rows if diverged(row) or row.get(measure) is not None]
    parts = {name: [row for row in usable if row["arm"] == name] for name in arms_in_order(runs, arm_of)}
    ladders: dict[str, list[Arm]] = {}
    for name, part in parts.items():
        at = rows_by_budget(part)
        for tokens, near_rows in at.items():
            ended = [row for row in near_rows if not diverged(row)]
            places = [Place(name, tokens, row["lr"], row["seed"]) for row in ended]
            refuse_twins((place, row["run"], configs[row["run"]]) for place, row in zip(places, ended, strict=True))
        if at:
            ladders[name] = [arm_from_rows(name, part, measure, higher_is_better, scores) for part in at.values()]
    if len(ladders) < min_arms:
        numbers = {name for row in rows for name, value in row.items() if isinstance(value, float)}
        metrics = [name for name in sorted(numbers) if (name == LOSS or "/" in name) and not name.startswith(START)]
        raise ValueError(
            f"study.measure={measure}: arms with finished runs that have it: {len(ladders)}, needed: {min_arms}; "
            f"measures of these runs: {', '.join(metrics)}"
        )
    return ladders


def rows_by_budget(rows: Sequence[Row], along: str = "tokens") -> dict[float, list[Row]]:
    """The rows of an arm at each of its budgets, in ascending order; a run that diverged is at all of them.

    along  the quantity that a budget is of
    """
    budgets: list[float] = []
    for amount in sorted(row[along] for row in rows if not diverged(row)):
        if not budgets or not near(amount, budgets[-1]):
            budgets.append(amount)
    return {amount: [row for row in rows if diverged(row) or near(row[along], amount)] for amount in budgets}


def measured(ladders: Mapping[str, Sequence[Arm]], measure: str) -> Score:
    """Unit, direction and label of a measure of arms."""
    return next(iter(ladders.values()))[0].scores[measure]


def diverged(row: Row) -> bool:
    return row.get("status") == Status.DIVERGED


def near(tokens: float, budget: float) -> bool:
    """Whether a number of tokens belongs to a budget, which is the least of its group."""
    return 0 <= tokens / budget - 1 <= SAME_TOKENS


def arm_from_rows(
    name: str, rows: Sequence[Row], measure: str = LOSS, higher_is_better: bool = False, scores: Measures | None = None
) -> Arm:
    """The arm of these rows, at its learning rate of best mean over all seeds; a run that diverged is worst.

    Where some seed diverged at every rate, the rate at which the fewest did is the best, and the arm is not tuned. A
    run of this budget takes precedence over one that diverged, which may have been of another budget.
    """
    values: dict[float, dict[int, float]] = {}
    for row in rows:
        by_seed = values.setdefault(row["lr"], {})
        if diverged(row):
            by_seed.setdefault(row["seed"], -math.inf if higher_is_better else math.inf)
        else:
            by_seed[row["seed"]] = row[measure]
    most = max(len(by_seed) for by_seed in values.values())
    complete = {lr: each for lr, each in values.items() if len(each) == most}
    finite = {lr: [value for value in each.values() if math.isfinite(value)] for lr, each in complete.items()}

    def rank(lr: float) -> tuple[int, float]:
        mean = statistics.fmean(finite[lr]) if finite[lr] else math.inf
        return len(finite[lr]), mean if higher_is_better else -mean

    best = max(complete, key=rank)
    reason = untuned(sorted(complete), best, most)
    if not reason and len(finite[best]) < most:
        reason = f"{most - len(finite[best])} of {most} seeds diverged at the best learning rate {best:g}"
    ended = [row for row in rows if not diverged(row)]
    measures: dict[str, dict[int, float]] = {}
    for row in (row for row in ended if row["lr"] == best):
        for key, value in row.items():
            if (key == LOSS or "/" in key or key.startswith(START)) and isinstance(value, float):
                measures.setdefault(key, {})[row["seed"]] = value
    scores = Measures() if scores is None else scores
    facts, speeds = facts_of_arm(ended, scores), measured_values(ended, "speed")
    return Arm(name, values, best, reason, facts, measure, measures, higher_is_better, scores, speeds)


def untuned(lrs: Sequence[float], best: float, seeds: int) -> str:
    """Why an arm with these learning rates is untuned; empty when it is tuned."""
    if len(lrs) >= LRS and best in (lrs[0], lrs[-1]):
        return f"the best learning rate {best:g} is the {'lowest' if best == lrs[0] else 'highest'} that was tried"
    return too_few(len(lrs), seeds)


def too_few(lrs: int, seeds: int) -> str:
    """Why no arm with so many learning rates and seeds is tuned; "" where one may be."""
    wanted = ((lrs, LRS, "learning rate"), (seeds, SEEDS, "seed"))
    short = [(f"{count} {name}{'s' * (count != 1)}", count, least) for count, least, name in wanted if count < least]
    if not short:
        return ""
    tried, counts, needed = zip(*short, strict=True)
    verb = "was" if counts == (1,) else "were"
    return f"only {' and '.join(tried)} {verb} tried, and {' and '.join(map(str, needed))} are needed"


def rates_to_add(arms: Sequence[Arm]) -> str:
    """Returns the command that gives arms learning rates and seeds enough: rates are even around the best of each."""
    few = min(len(arm.best_values) for arm in arms) < SEEDS
    missing, seeds = ("rates and seeds", f" design.seeds={SEEDS}") if few else ("rates", "")
    grids = {arm.name: wider_grid(arm.grid, arm.best_lr) for arm in arms}
    texts = {name: f"[{','.join(f'{rate:.3g}' for rate in grid)}]" for name, grid in grids.items()}
    if len({*texts.values()}) == 1:
        return f"add {missing}: `design.lrs={next(iter(texts.values()))}{seeds}`"
    return f"add {missing}: `design.lrs={{{','.join(f'{name}:{text}' for name, text in texts.items())}}}{seeds}`"


def wider_grid(rates: Sequence[float], best: float) -> list[float]:
    """Returns at least LRS learning rates at the spacing of `rates`, a factor of 2 if there is one, `best` inside."""
    step = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1)) if len(rates) > 1 else 2.0
    grid = sorted({*rates, best})
    while len(grid) < LRS or best in (grid[0], grid[-1]):
        below = grid.index(best)
        if below <= len(grid) - 1 - below:
            grid.insert(0, grid[0] / step)
        else:
            grid.append(grid[-1] * step)
    return grid


def uneven(arms: Sequence[Arm]) -> str:
    """Why arms were not tuned alike, as `uneven_grids`; "" where they were."""
    return uneven_grids({arm.name: arm.grid for arm in arms})


def uneven_grids(grids: Mapping[str, Sequence[float]]) -> str:
    """Why arms were not tuned alike: another number of learning rates, or another spacing; "" where they were.

    grids  learning rates of each arm in ascending order
    """
    sizes = {name: len(rates) for name, rates in grids.items()}
    if len(set(sizes.values())) > 1:
        return "the arms have different numbers of learning rates: " + format_pairs(sizes)
    steps = {name: math.log(rates[-1] / rates[0]) / max(len(rates) - 1, 1) for name, rates in grids.items()}
    if max(steps.values()) > (1 + SPACING) * min(steps.values()):
        factors = {name: f"{math.exp(step):.3g}x" for name, step in steps.items()}
        return "the learning rates of the arms have different spacing: " + format_pairs(factors)
    wide = [name for name, rates in grids.items() if not evenly_spaced(rates)]
    return f"the learning rates of {wide[0]} are not evenly spaced on a logarithmic scale" if wide else ""


def evenly_spaced(rates: Sequence[float]) -> bool:
    """Whether neighboring rates have about the same ratio, as 1, 2, 5, 10 do."""
    ratios = [math.log(high / low) for low, high in pairwise(rates)]
    return not ratios or max(ratios) <= 1.5 * min(ratios)


def format_pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


class Unready(NamedTuple):
    """Why runs decide nothing, and what helps; both "" where they can."""

    why: str = ""
    advice: str = ""


def not_ready(runs: Sequence[Run], looks: int, arm_of: ArmOf = arm_name) -> Unready:
    """Why these runs decide nothing yet: some have not been trained, or they were looked at too often.

    Each plan of an arm with another number of seeds was a look, because the runs of the plan before had been seen by
    then. A plan with fewer seeds than a tuned arm has could decide nothing, so it was none.
    """
    mine = [run for run in runs if arm_of(run) is not None]
    waiting = [run for run in mine if run.status not in (Status.FINISHED, Status.DIVERGED)]
    if waiting:
        return Unready(f"{len(waiting)} of {len(mine)} runs have not finished", FINISH)
    parts = [[run for run in mine if arm_of(run) == name] for name in dict.fromkeys(map(arm_of, mine))]
    plans = [{seeds for seeds in (planned_seeds(run, arm_of) for run in part) if seeds} for part in parts]
    for part, planned in zip(parts, plans, strict=True):
        seeds = len({run.config.get("seed") for run in part})
        if seeds < max(planned, default=0):
            return Unready(
                f'{seeds} of the {max(planned)} planned seeds of the arm "{arm_of(part[0])}" were run', FINISH
            )
    planned = max((each - {*range(SEEDS)} for each in plans), key=len, default=set())
    if len(planned) > looks:
        numbers = ", ".join(map(str, sorted(planned)))
        return Unready(
            f"the runs were planned with {numbers} seeds, which makes {len(planned)} looks, and study.looks={looks}",
            f"plan the looks of a new study: `name=NEW study.looks={len(planned)}`",
        )
    return Unready()


def planned_seeds(run: Run, arm_of: ArmOf) -> int | None:
    """The number of seeds that the design of a run planned for its arm; None where the design did not name the arm."""
    study, design = (run.config.get(name) or {} for name in ("study", "design"))
    arm, kind, text = (study.get(key) for key in ("arm", "kind", "start"))
    if arm_of(run) not in {arm, kind, arm_from_text(str(kind), str(text))} - {None}:
        return None
    seeds = study.get("seeds") or design.get("seeds")
    return max(seeds) if isinstance(seeds, list) else seeds


def planned_looks(runs: Sequence[Run], arm_of: ArmOf) -> int:
    """The largest study.looks of the runs whose design named their arm; 1 without such runs."""
    studies = [run.config.get("study") or {} for run in runs if planned_seeds(run, arm_of) is not None]
    return max((study.get("looks", 1) for study in studies), default=1)
