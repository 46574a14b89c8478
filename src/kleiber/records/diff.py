"""The differences of two runs: config, inputs, code, environment, logged values and final metrics (`kleiber diff`).

Measured times, such as `speed/tokens_per_s`, differ in every run and are not compared. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kleiber.config.errors import ConfigError
from kleiber.config.nested import flatten
from kleiber.config.stages import quantity
from kleiber.records.catalog import Run, find_run
from kleiber.records.folder import identity, identity_of_callbacks
from kleiber.records.metrics import read_rows
from kleiber.types import Config, Json, Row

Pair = tuple[object, object]  # the values of the first and of the second run; None where a run has none
MEASURED = ("speed/", "eval/latency/")  # beginnings of the names of measured times
EVALUATION = "eval/"  # beginning of the names of scores of evaluations
NO_VALUE = "-"


@dataclass(frozen=True)
class Step:
    """The first step at which two runs logged different values.

    stage, step  of the rows
    values       the values of both runs, by metric
    """

    stage: str
    step: int
    values: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Diff:
    """What differs between two runs; both values by name.

    folders      of the two runs
    config       keys of the config that can change the result
    settings     other keys of the config, such as loggers and hardware
    data         hashes of the inputs: data, tokenizers and start weights
    code         commit, and whether it had uncommitted changes
    environment  versions and machine
    steps        number of pairs of stage and step that both runs have logged
    first        the first of these steps at which a value differs; None where all are equal
    metrics      the final metrics of all stages, equal ones too
    """

    folders: tuple[Path, Path]
    config: dict[str, Pair]
    settings: dict[str, Pair]
    data: dict[str, Pair]
    code: dict[str, Pair]
    environment: dict[str, Pair]
    steps: int
    first: Step | None
    metrics: dict[str, Pair]

    def to_json(self) -> Json:
        """Returns the content of the file that `kleiber diff --json` writes."""
        first = None if self.first is None else vars(self.first)
        return {"schema": "kleiber.diff/1", **vars(self), "folders": [str(f) for f in self.folders], "first": first}


def open_run(folder: Path) -> Run:
    """Returns the run in a folder, or of this name in the archive beside it. Raises ConfigError where there is none."""
    run = find_run(folder.expanduser().absolute())
    if run is None:
        raise ConfigError(f"{folder} must be the folder of a run, which has a config.yaml")
    return run


def diff_runs(first: Run, second: Run) -> Diff:
    """Returns the differences of two runs."""
    runs = (first, second)
    keys = differing(*(flatten(run.config) for run in runs))
    changing = changing_keys(first.config, second.config)
    rows = [logged_values(run) for run in runs]
    return Diff(
        folders=(first.folder, second.folder),
        config={key: pair for key, pair in keys.items() if key in changing},
        settings={key: pair for key, pair in keys.items() if key not in changing},
        data=differing(*(run.summary.get("inputs") or {} for run in runs)),
        code=differing(*({key: run.summary.get(key) for key in ("commit", "dirty")} for run in runs)),
        environment=differing(*map(environment, runs)),
        steps=len(rows[0].keys() & rows[1].keys()),
        first=first_difference(*rows),
        metrics=pairs(*map(final_metrics, runs)),
    )


def identity_values(config: Config) -> Json:
    """Returns the values of a config that determine the result of its run (`identity`), by dotted key."""
    callbacks = identity_of_callbacks(config)
    others = {name: node for name, node in identity(config).items() if name not in callbacks}
    return flatten({**others, "callbacks": callbacks} if callbacks else others)


def changing_keys(first: Config, second: Config) -> set[str]:
    """Returns the keys of two configs whose values differ and can change the result."""
    return {*differing(identity_values(first), identity_values(second))}


def as_number(value: object) -> float | None:
    """Returns a number, or the number that a quantity such as `20M` states; None for any other value."""
    if isinstance(value, int | float):
        return value
    try:
        return quantity(value) if isinstance(value, str) else None
    except ValueError:
        return None


def pairs(first: Row, second: Row) -> dict[str, Pair]:
    """Returns the values of both mappings by key, in the order of the first."""
    return {key: (first.get(key), second.get(key)) for key in dict.fromkeys([*first, *second])}


def differing(first: Row, second: Row) -> dict[str, Pair]:
    """Returns the values of both mappings for the keys whose values differ."""
    return {key: pair for key, pair in pairs(first, second).items() if not is_equal(*pair)}


def is_equal(first: object, second: object) -> bool:
    """Whether two values are equal; NaN equals NaN."""
    return first == second or (first != first and second != second)


def environment(run: Run) -> Json:
    """Returns the versions and the machine of a run by name, such as `machine.cpu`."""
    return flatten({name: run.summary.get(name) or {} for name in ("versions", "machine")})


def final_metrics(run: Run) -> dict[str, float]:
    """Returns the final metrics of all stages; in a run of several stages a name begins with that of its stage."""
    several = len(run.stages) > 1
    return {
        f"{stage['name']}/{name}" if several else name: value
        for stage in run.stages
        for name, value in (stage.get("metrics") or {}).items()
        if not is_measured(name)
    }


def is_of_evaluation(name: str) -> bool:
    """Whether a final metric is a score of an evaluation, which may be added to a run after its training."""
    return name.startswith(EVALUATION) or f"/{EVALUATION}" in name


def is_measured(name: str) -> bool:
    """Whether a metric is a measured time, which differs in every run."""
    return name.startswith(MEASURED)


def logged_values(run: Run) -> dict[tuple[str, int], dict[str, float]]:
    """Returns the logged values of a run by stage and step, in the order in which they were logged."""
    rows = read_rows(run.folder) if run.archived is None else run.rows
    values: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        numbers = {name: value for name, value in row.items() if "/" in name and not is_measured(name)}
        values.setdefault((str(row.get("stage") or "main"), row["step"]), {}).update(numbers)
    return {place: numbers for place, numbers in values.items() if numbers}


Logged = Mapping[tuple[str, int], Mapping[str, float]]


def first_difference(first: Logged, second: Logged) -> Step | None:
    """Returns the first step at which values that both runs have logged differ, and these values; None where none."""
    for place, values in first.items():
        other = second.get(place, {})
        unequal = {
            name: (value, other[name])
            for name, value in values.items()
            if name in other and not is_equal(value, other[name])
        }
        if unequal:
            return Step(*place, unequal)
    return None


def diff_lines(diff: Diff) -> list[str]:
    """Returns the lines that `kleiber diff` prints."""
    lines = [f"{name}  {folder}" for name, folder in zip("AB", diff.folders, strict=True)]
    lines += section("config", "no key that can change the result", diff.config)
    if diff.settings:
        lines += section("config that does not change the result", "", diff.settings)
    lines += section("data", "the same inputs", diff.data)
    lines += section("code", "the same commit", diff.code)
    lines += section("environment", "the same versions and machine", diff.environment)
    lines += ["", f"metrics.jsonl: {first_step_line(diff)}"]
    with_gap = {name: (*pair, gap(*pair)) for name, pair in diff.metrics.items()}
    return lines + table("final metrics", ("A", "B", "B - A"), with_gap) if with_gap else lines


def section(title: str, none: str, differences: Mapping[str, Pair]) -> list[str]:
    """Returns the lines of one kind of differences, or a line that says that there are none."""
    return table(title, ("A", "B"), differences) if differences else ["", f"{title}: {none}"]


def first_step_line(diff: Diff) -> str:
    """Returns a sentence about the first step at which the runs differ."""
    if not diff.steps:
        return "no step was logged in both runs"
    if diff.first is None:
        return f"equal at all {diff.steps} steps that both runs have logged"
    stage = "" if diff.first.stage == "main" else f" of stage {diff.first.stage}"
    values = diff.first.values
    name = next((name for name in values if name.endswith("/loss")), next(iter(values)))
    first, second = values[name]
    return f"first difference at step {diff.first.step}{stage}: {name} {show(first)} and {show(second)} " + (
        f"({gap(first, second)}), of {diff.steps} steps that both runs have logged"
    )


def gap(first: object, second: object) -> str:
    """Returns the second number less the first, or "" where one of them is missing."""
    if not (isinstance(first, int | float) and isinstance(second, int | float)):
        return ""
    return "0" if is_equal(first, second) else f"{second - first:+.4g}"


def show(value: object) -> str:
    """Returns a value of a table: a dash for a missing value, and six significant digits."""
    return NO_VALUE if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def table(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[object]]) -> list[str]:
    """Returns the lines of a table with a title, a column of names and one for each of `heads`."""
    cells = [[title, *heads], *([f"  {name}", *map(show, values)] for name, values in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)]
