"""The command `kleiber compare`: compares the runs of any folders by the value of a key of their configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kleiber.records.catalog import Run


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="folders of runs, or runs.jsonl.gz files")],
    arm: Annotated[
        str, typer.Option(metavar="KEY", help="key of the config whose values are the arms, or study.arm")
    ] = "study.arm",
    measure: Annotated[
        str, typer.Option(metavar="METRIC", help="what is compared, such as val/sst2/accuracy")
    ] = "loss",
    equal: Annotated[str, typer.Option(help="what is held equal: tokens, flops, params, memory or seconds")] = "tokens",
    level: Annotated[float, typer.Option(help="confidence level of the interval")] = 0.9,
    json: Annotated[Path | None, typer.Option(metavar="OUT.json", help="write the decision to this file")] = None,
) -> None:
    """Compare the arms of finished runs: is the second better than the first, at equal what, and how sure?

    Exit code 0 if it is, 5 if it is worse, 3 if that is undecided or was not tested.
    """
    from kleiber.config.check import check_type
    from kleiber.records.catalog import read_runs
    from kleiber.records.files import write_json
    from kleiber.studies.compare.decision import Decision
    from kleiber.studies.compare.study import Compare
    from kleiber.studies.compare.study import compare as compare_arms
    from kleiber.studies.study import Level

    check_type("--level", Level, level)
    runs = [run for folder in folders for run in read_runs(folder)]
    findings = compare_arms(runs, Compare(measure=measure, equal=equal, level=level), by_key(arm, runs))
    assert findings.comparison is not None
    typer.echo(findings.headline)
    for row in findings.tables["Differences"]:
        value = "no difference" if row["value"] is None else f"{row['value']:+.4f}"
        ends = "" if row["lo"] is None else f" [{row['lo']:+.4f}, {row['hi']:+.4f}]"
        typer.echo(f"  at equal {row['equal']:<18} {value}{ends}{'  ' + row['note'] if row['note'] else ''}")
    if json is not None:
        write_json(json, findings.comparison)
    raise typer.Exit(Decision(findings.comparison["decision"]).exit_code)


def by_key(key: str, runs: list[Run]) -> Callable[[Run], str | None]:
    """Returns the function that names the arm of a run: `KEY=value`, or the name that a design gave to the arm.

    Raises ValueError where the key has fewer than two values.
    """
    from kleiber.records.folder import flatten

    values = {run.folder: flatten(run.config).get(key) for run in runs}
    distinct = dict.fromkeys(map(str, values.values()))
    if len(distinct) < 2:
        raise ValueError(f"--arm {key}: all of the {len(runs)} runs have the value {next(iter(distinct), None)}")
    if key == "study.arm":
        return lambda run: None if values[run.folder] is None else str(values[run.folder])
    last = key.rpartition(".")[2]
    return lambda run: f"{last}={values[run.folder]}"
