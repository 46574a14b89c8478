"""What a measure of arms is: its unit, direction and label, as whoever measured it recorded them."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kleiber.config.labels import readable
from kleiber.records import catalog
from kleiber.records.metrics import rows_with
from kleiber.studies.decision import Criterion
from kleiber.types import Config, Row
from kleiber.types.score import Metric, Score

LOADS = {  # of `expert_loads`
    "moe/max_violation": Metric("excess load of the busiest expert", "lower", "of the mean load"),
    "moe/load_entropy": Metric("entropy of the expert loads", "higher", "of its maximum"),
    "moe/dead": Metric("number of dead experts", "lower", "experts per layer"),
}


def expert_loads(logged: Sequence[Row], stage: str | None) -> dict[str, float]:
    """Means over layers of what a stage logged about its experts; empty for a model without experts.

    moe/max_violation, moe/load_entropy  over the last tenth of the rows
    moe/dead                             the last count of dead experts
    """
    rows = [row for row in rows_with(logged, "moe/load_entropy/") if row.get("stage") in (None, stage)]
    late, counted = rows[-max(1, len(rows) // 10) :], rows_with(rows, "moe/dead/")[-1:]
    loads = {}
    for name, source in (("moe/max_violation", late), ("moe/load_entropy", late), ("moe/dead", counted)):
        values = [value for row in source for key, value in row.items() if key.startswith(f"{name}/")]
        finite = [value for value in values if math.isfinite(value)]
        loads |= {name: statistics.fmean(finite)} if finite else {}
    return loads


def with_pattern(row: Row, measure: str) -> Row:
    """Returns a row with a measure that is a pattern, such as val/*/accuracy, of the one metric whose name it matches.

    Raises ValueError, which names the run, where several metrics match.
    """
    names = fnmatch.filter(row, measure) if "*" in measure else []
    if len(names) > 1:
        raise ValueError(f"study.measure={measure} matches several metrics of {row['run']}: {', '.join(names)}")
    return {**row, measure: row[names[0]]} if names else row


def panels_of(runs: Sequence[catalog.Run], measure: str, arm_of: Callable[[catalog.Run], str | None]) -> dict[str, str]:
    """Returns the panel of each arm in figures: what stands in its metric for the asterisk of a pattern.

    Empty for a measure that is no pattern, or where all arms have one metric, so that they compare.
    """
    before, _, after = measure.partition("*")
    panels = {}
    for run in runs if "*" in measure else ():
        for name in fnmatch.filter(run.metrics, measure):
            panels[str(arm_of(run))] = readable(name.removeprefix(before).removesuffix(after))
    return panels if len(set(panels.values())) > 1 else {}


def score_of(runs: Iterable[catalog.Run], measure: str) -> Score:
    """Unit, direction and label of a measure of arms: a column of the table of runs, or one of `expert_loads`.

    Of a pattern, those of the first metric whose name it matches, with the last part of the pattern as label.
    """
    if "*" in measure:
        runs = [*runs]
        names = (name for run in runs for name in fnmatch.filter(run.metrics, measure))
        score = catalog.score_of(runs, next(names, measure))
        return replace(score, label=measure.rpartition("/")[2])
    metric = LOADS.get(measure)
    if metric is None:
        return catalog.score_of(runs, measure)
    return Score(math.nan, unit=metric.unit, better=metric.better, label=metric.label)


class Measures(dict[str, Score]):
    """Unit, direction and label of the measures of runs, each of which is looked up when it is needed."""

    def __init__(self, runs: Sequence[catalog.Run] = ()) -> None:
        super().__init__()
        self.runs = runs

    def __missing__(self, measure: str) -> Score:
        self[measure] = score_of(self.runs, measure)
        return self[measure]


def direction_of(measure: str, claims: Sequence[Config], runs: Sequence[catalog.Run]) -> str:
    """Returns "lower" or "higher", whichever value of a measure is better: as recorded, else by the claims about it.

    claims  nodes of the config; one without a measure is about this one

    Raises ValueError where runs have the measure and neither says it.
    """
    better = score_of(runs, measure).better
    asked = [str(node.get("direction") or "lower") for node in claims if node.get("measure", measure) == measure]
    stated = {Criterion(direction).better for direction in asked if direction != "within"}
    if better != "none":
        return better
    if len(stated) == 1:
        return str(stated.pop())
    if not any(measure in run.metrics for run in runs):
        return "lower"  # `read_ladders` says which measures the runs have
    raise ValueError(
        f"study.measure={measure} does not tell whether a lower or a higher value is better; state it by claims of one "
        "direction, such as study.claims=[{arm: B, against: A, direction: lower}]"
    )
