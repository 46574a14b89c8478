"""The table of a panel: a row for each leaf of a run, each measure, and each value of keys in the names of metrics.

Keys come from the config (`data.steps`), from the stage (`stage.params.total`), or from the names of metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from kleiber.config.nested import flatten
from kleiber.inference.joint import quantile
from kleiber.records.catalog import Run
from kleiber.records.diff import as_number
from kleiber.studies.claims import RATE
from kleiber.studies.compare.costs import memory_bytes
from kleiber.studies.compare.places import refuse_twin_rows
from kleiber.studies.compare.rows import Rows, is_fine_tuned, outcomes
from kleiber.studies.decision import QUANTITIES
from kleiber.studies.panel_declaration import EVERY, RESERVED, Key, Measure, filled, keys_in, pattern_of
from kleiber.types import Config, Json
from kleiber.types.score import SCORE_LEVEL

STAGE, START, FORGETTING = "stage.", "start:", "forgetting:"
REFERENCE = ":reference"  # suffix of the measure that is the reference of another one
ITEMS = ":items"  # suffix of the standard error over items of another one
SAME = "same:"  # prefix of the columns of what claims hold equal
HELD = (*QUANTITIES, RATE)  # what the claims of a panel can hold equal


def every_stage(run: Run, stage: Json) -> bool:
    """Returns True: a table has the last stage of every run, and all branches of a trunk."""
    return True


def read_table(
    runs: Sequence[Run], keys: Sequence[Key], measures: Sequence[Measure],
    is_read: Callable[[Run, Json], bool] = every_stage,
) -> Rows:  # fmt: skip
    """Returns the table of a panel: the columns RESERVED, those of what claims hold equal, and one for each key.

    is_read  whether the table has a stage of a run

    Raises ValueError where no finished run has a measure, where two runs have the same place, and where a run has
    several metrics of a measure at one place.
    """
    sources = [source for measure in measures for source in measure.sources]
    finished = [run for run in runs if run.finished]
    forgotten = fine_tuned(finished) if any(source.startswith(FORGETTING) for source in sources) else {}
    rows: list[Json] = []
    for run in finished:
        for stage in run.leaves:
            place = place_of(run, stage, keys) if is_read(run, stage) else None
            if place is not None:
                scores = scores_of(run, stage) | forgotten.get(run.name, {})
                values = measured(scores, item_errors(stage), keys, measures)
                rows += [{"run": run.name, **place, **row} for row in values]
    if not rows:
        raise ValueError(
            f"none of these {len(runs)} runs has finished with a metric that study.measures names: {', '.join(sources)}"
        )
    columns = [key.name for key in keys]
    every = [*RESERVED, *(f"{SAME}{name}" for name in HELD), *columns]
    table = pd.DataFrame({name: pd.Series([row.get(name) for row in rows]) for name in every})
    table = table.assign(**{name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})
    refuse_twin_rows(table, [*(key.name for key in keys if key.sources), "seed"], runs)
    refuse_several_metrics(table, columns)
    return table.drop_duplicates(["seed", *columns, "measure"], ignore_index=True)


def refuse_several_metrics(table: Rows, keys: Sequence[str]) -> None:
    """Raises ValueError where a run has several metrics of a measure at one place."""
    several = table[table.duplicated(["run", *keys, "measure"], keep=False)]
    if len(several):
        row = several.iloc[0]
        metrics = several.loc[(several["run"] == row["run"]) & (several["measure"] == row["measure"]), "metric"]
        raise ValueError(
            f"study.measures.{row['measure']} has several values in the run {row['run']}: "
            f"{', '.join(dict.fromkeys(metrics))}. Name one of the metrics, or add a key that differs between them: "
            "{data:path} in place of **, or stage.tokens for the branches of a trunk"
        )


def place_of(run: Run, stage: Json, keys: Sequence[Key]) -> Json | None:
    """Returns the columns of a run that its measures share; None where it lacks a key."""
    levels = levels_of(run.config, {f"{STAGE}{name}": value for name, value in flatten(stage).items()}, keys)
    if None in levels.values():
        return None
    row = run.stage_row(stage)
    same = {
        RATE: row["lr"], "tokens": row["tokens"], "flops": row["flops"], "params": row["params"],
        "seconds": stage.get("seconds"), "memory": memory_bytes(run.config.get("model") or {}, stage),
    }  # fmt: skip
    base = str((run.config.get("init") or {}).get("path") or "")
    return {"seed": row["seed"], "base": base, **{f"{SAME}{name}": same[name] for name in HELD}, **levels}


def inherited(table: Rows) -> Rows:
    """Returns a table whose derived rows have what claims hold equal from other rows of their run."""
    held = [f"{SAME}{name}" for name in HELD]
    return table.assign(**{name: table[name].fillna(table.groupby("run")[name].transform("first")) for name in held})


def same_origin(first: Rows, other: Rows) -> bool:
    """Whether the rows are of the same runs, or all runs of one part began with the weights of runs of the other."""
    runs, others = set(first["run"]), set(other["run"])
    starts, other_starts = (
        {name for base in part["base"] for name in (Path(base).name, Path(base).parent.name)} for part in (first, other)
    )
    return runs == others or others <= starts or runs <= other_starts


def levels_of(config: Config, of_stage: Mapping[str, object], keys: Sequence[Key]) -> dict[str, object]:
    """Returns the values of the keys that have a source; None for one without a value and a default.

    of_stage  values of the last stage by key, with the prefix STAGE
    """
    values = {**flatten(config), **of_stage}
    levels = {}
    for key in (key for key in keys if key.sources):
        present = [values[source] for source in key.sources if values.get(source) is not None]
        levels[key.name] = level_of(key, present[0]) if present else key.default
    return levels


def level_of(key: Key, value: object) -> object:
    """Returns the value of a key for a value of its source; text with a number, such as 0.2 or 20M, is a number."""
    if str(value) in key.values or EVERY in key.values:
        return key.values.get(str(value), key.values.get(EVERY))
    if not isinstance(value, str):
        return value if isinstance(value, bool | int | float) else str(value)
    number = 0 if value == "0" else as_number(value)  # quantities are positive
    if number is None:
        return value
    return int(number) if float(number).is_integer() and "." not in value else number


def scores_of(run: Run, stage: Json) -> dict[str, float]:
    """Returns the numbers of a stage: its metrics, columns of the table of runs, and metrics before its first step."""
    start = {f"{START}{name}": value for name, value in (stage.get("start_metrics") or {}).items()}
    values = {**run.stage_row(stage), **start}
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def fine_tuned(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Returns forgetting F and the target loss of each run that started from another one's weights, by name."""
    if not any(is_fine_tuned(run) for run in runs):
        return {}
    table: Rows = outcomes(runs)
    averaged = table["method"].str.split("+").map(lambda names: "wise" in names)
    kept = table[~averaged][["run", "F", "target"]].to_dict("records")
    return {
        str(row["run"]): {f"{FORGETTING}{name}": row[name] for name in ("F", "target") if not math.isnan(row[name])}
        for row in kept
    }


def item_errors(stage: Json) -> dict[str, float]:
    """Returns the standard error over items of each metric of a stage that has an interval of them."""
    scores = (stage.get("scores") or {}).items()
    ends = {name: (score["lo"], score["hi"]) for name, score in scores if None not in (score["lo"], score["hi"])}
    return {name: (high - low) / 2 / quantile(math.inf, SCORE_LEVEL) for name, (low, high) in ends.items()}


def measured(
    scores: Mapping[str, float], errors: Mapping[str, float], keys: Sequence[Key], measures: Sequence[Measure]
) -> Iterator[Json]:
    """Yields a row for each value of each measure among the metrics of a stage, of its error, and of references.

    errors  standard errors over items, by metric
    """
    by_name = {key.name: key for key in keys}
    for measure in measures:
        rows = []
        for source in measure.sources:
            rows = [*matches(source, measure, scores, by_name)]
            if rows:
                break
        yield from rows
        if measure.items:
            yield from matches(measure.items, Measure(f"{measure.name}{ITEMS}", (), "", "", "none"), errors, by_name)
        if isinstance(measure.reference, str):
            plain = Measure(f"{measure.name}{REFERENCE}", (), "", "", "none")
            yield from matches(measure.reference, plain, scores, by_name)


def matches(source: str, measure: Measure, scores: Mapping[str, float], keys: Mapping[str, Key]) -> Iterator[Json]:
    """Yields a row for each metric whose name has a pattern."""
    pattern, names = pattern_of(source), keys_in(source)
    for metric, value in scores.items():
        match = pattern.fullmatch(metric)
        if match is None:
            continue
        parts = match.groupdict()
        levels = {
            name: keys[name].default if parts[name] is None else level_of(keys[name], parts[name]) for name in names
        }
        subtracted = 0.0 if not measure.minus else scores.get(filled(measure.minus, parts))
        if subtracted is not None and None not in levels.values():
            yield {**levels, "measure": measure.name, "metric": metric, "value": value - subtracted}
