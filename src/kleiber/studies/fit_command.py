"""The commands `kleiber fit`, `predict` and `report`.

Exit codes: 0 done, 2 bad input, 3 fitted, but the law is not identified or is refused. Numerical packages are imported
when a command runs, so that listing the commands is fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kleiber.config.errors import ExitCode
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.laws.analysis import Options
    from kleiber.studies.laws.law import Law
    from kleiber.studies.laws.table import Table

Column = Annotated[str | None, typer.Option(help="column, a synonym of --map", show_default=False)]
Delta = Annotated[
    float | None, typer.Option(help="residual from which Huber is linear, on the scale of --space; default .001")
]
Trunk = Annotated[
    str | None, typer.Option(help="column of the trunk of a row, whose branches share noise; default for runs: trunk")
]
Fixed = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="hold a parameter at a value; repeat for others")
]
At = Annotated[
    str | None,
    typer.Option(metavar="NAME=VALUE,...", help="also report the objective at these values of all parameters"),
]
Sigma = Annotated[
    str | None, typer.Option(metavar="COL", help="column of the standard error of each row's loss, in its units")
]
Cuts = Annotated[
    str | None, typer.Option(help="cuts in C (in N where C is unknown), 1e20,1e21; default: three of them")
]
Exclude = Annotated[str, typer.Option(help="none, or suspects: leave out diverged, undertuned and unfinished rows")]


def fit(
    source: Annotated[Path, typer.Argument(metavar="TABLE", help="csv, jsonl, parquet, or a folder of runs")],
    law: Annotated[str, typer.Option(help="a shipped law, or FILE.py:FN")] = "chinchilla",
    map: Annotated[str | None, typer.Option(help="N=COL,D=COL,L=COL[,C=COL,X=COL]")] = None,
    params: Column = None,
    data: Column = None,
    loss: Column = None,
    compute: Column = None,
    loss_fn: Annotated[str | None, typer.Option(help="huber, lad or squared; default: the law's source's")] = None,
    delta: Delta = None,
    space: Annotated[str | None, typer.Option(help="log, linear or log10; default: the law's source's")] = None,
    where: Annotated[list[str] | None, typer.Option(help='"loss < 4 and N >= 1e8"; repeat to narrow')] = None,
    by: Annotated[str | None, typer.Option(help="one fit per value of this column")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples; 0 for none, else 2 / (1 - level) or more")] = 1000,
    cluster: Trunk = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    level: Annotated[float, typer.Option(help="coverage of every interval, between 0 and 1")] = 0.9,
    fix: Fixed = None,
    at: At = None,
    sigma: Sigma = None,
    backtest: Cuts = None,
    predict: Annotated[list[str] | None, typer.Option(help="N=..,D=..; repeat for others")] = None,
    exclude: Exclude = "none",
    rank: Annotated[bool, typer.Option("--rank", help="rank laws by leave-largest-compute-out error")] = False,
    max_decades: Annotated[float, typer.Option(min=0, help="farthest prediction outside the rows")] = 3.0,
    force: Annotated[bool, typer.Option("--force", help="predict beyond --max-decades")] = False,
    json: Annotated[Path | None, typer.Option(help="write laws.json here")] = None,
    report: Annotated[Path | None, typer.Option(metavar="OUT.html", help="write a page with figures here")] = None,
) -> None:
    """Fit a law to a table of runs: parameters with intervals, backtests, verdicts."""
    from kleiber.studies.laws import analysis, laws_json
    from kleiber.studies.laws.catalog import find

    try:
        pages = _pages() if report else None
        form = find(law).fix(_values(fix or (), "--fix"))
        named = _roles(source, map, {"N": params, "D": data, "L": loss, "C": compute}, form.inputs)
        cluster = cluster or ("trunk" if source.is_dir() else None)
        rows = _rows(source, {**named, **({"sigma": sigma} if sigma else {})}, where or (), form.inputs)
        options = analysis.Options(
            loss_fn, 1e-3 if delta is None else delta, space, bootstrap, cluster, seed, level,
            backtest=None if backtest is None else _numbers(backtest, "--backtest"),
            predict=[_point(text) for text in predict or ()],
            exclude=exclude, max_decades=float("inf") if force else max_decades, rank=rank,
            at=None if at is None else _values(at.split(","), "--at"),
        )  # fmt: skip
        _check(form, options, delta)
        parts = rows.split(by) if by else {"": rows}
        records = {group: _record(part, form, law, options, by, group) for group, part in parts.items()}
        if json:
            laws_json.write({"schema": "kleiber.laws/1", "by": by, "laws": records} if by else records[""], json)
    except ValueError as error:
        _refuse(error)
    show(records, by)
    if pages is not None:
        pages.write(report, source, form, records, parts, by)
        typer.echo(f"report: {report}")
    if not all(analysis.accepted(entry) for entry in records.values()):
        raise typer.Exit(ExitCode.UNDECIDED)


def show(records: Mapping[str, Row], by: str | None) -> None:
    """Prints the records by group."""
    from kleiber.studies.laws.laws_json import lines

    for group, entry in records.items():
        typer.echo("\n".join(([f"\n{by} = {group}"] if by else []) + lines(entry)))


def predict(
    laws_json: Annotated[Path, typer.Argument(metavar="LAWS.json")],
    at: Annotated[list[str] | None, typer.Argument(metavar="N=.. D=..", help="and COLUMN=VALUE where --by was")] = None,
    on: Annotated[Path | None, typer.Option(metavar="TABLE", help="predict these rows instead, and compare")] = None,
    map: Annotated[str | None, typer.Option(help="the columns of --on: N=COL,D=COL,L=COL")] = None,
    where: Annotated[list[str] | None, typer.Option(help='rows of --on: "C > 1e13"; repeat to narrow')] = None,
    max_decades: Annotated[float, typer.Option(min=0, help="refuse predictions farther outside")] = 3.0,
    force: Annotated[bool, typer.Option("--force", help="predict beyond --max-decades")] = False,
) -> None:
    """Predict from a fitted law, with its interval and the band of a new run; or compare it with the rows of --on."""
    from kleiber.studies.laws import prediction
    from kleiber.studies.laws.laws_json import comparison_lines, prediction_line, read

    try:
        entry, words = read(laws_json), list(at or ())
        if entry["schema"] == "kleiber.laws/1":
            entry, words = _group(entry, words)
        form, most = prediction.law_of(entry), float("inf") if force else max_decades
        if on is not None:
            if words:
                raise ValueError(f"{' '.join(words)}: give points or --on {on}, not both")
            rows = _rows(on, _roles(on, map, inputs=form.inputs), where or (), form.inputs)
            comparison = prediction.compare_with_rows(entry, form, rows, most)
            typer.echo("\n".join(comparison_lines(comparison, entry["level"])))
            return
        if map or where:
            raise ValueError("--map and --where need --on TABLE, which is missing")
        answer = prediction.predict(entry, form, _point(",".join(words)), most)
        if "refused" in answer:
            raise ValueError(f"{' '.join(words)}: {answer['refused']}; --force predicts anyway")
    except ValueError as error:
        _refuse(error)
    typer.echo(prediction_line(answer, entry["level"]))


def report(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|runs.jsonl.gz", help="a study's or sweep's folder, or its archive")
    ],
    out: Annotated[Path | None, typer.Option(help="write the page here and nothing else; default: all in DIR")] = None,
    study: Annotated[
        str | None, typer.Option(help="analyze the runs as this study; default: that of their config")
    ] = None,
    also: Annotated[list[Path] | None, typer.Option(help="also the runs of this folder; repeat for others")] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="mirror it to W&B, as the runs were")] = False,
) -> None:
    """Analyze the runs of a study again: laws.json, findings.json, figures and one HTML page.

    Exit code 3 when the study's law is refused or not identified.
    """
    try:
        pages = _pages("report")
        findings = pages.report(source, out, study, also or (), wandb)
    except (ValueError, OSError) as error:
        _refuse(ValueError(str(error)))
    typer.echo("\n".join(pages.closing_lines(findings, out or pages.folder_of(source) / "report.html")))
    if findings["refused"] or findings["not_identified"]:
        raise typer.Exit(ExitCode.UNDECIDED)


def _pages(name: str = "fit_page") -> ModuleType:
    """The module of studies that writes a page. ValueError where a package that it draws with is not installed."""
    try:
        for drawing in ("altair", "vl_convert"):
            import_module(drawing)
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: a report needs the extra, pip install 'kleiber[report]'"
        ) from None
    return import_module(f"kleiber.studies.{name}")


def _check(form: "Law", options: "Options", delta: float | None) -> None:
    """ValueError for options without effect and for too few resamples for an interval."""
    from kleiber.studies.laws.analysis import fewest_draws
    from kleiber.studies.laws.laws_json import percent

    fewest, loss_fn = fewest_draws(options.level), options.loss_fn or form.loss_fn
    if 0 < options.bootstrap < fewest:
        raise ValueError(
            f"--bootstrap {options.bootstrap}: a {percent(options.level)} interval needs {fewest} resamples or more; "
            "0 for none"
        )
    if delta is not None and loss_fn != "huber":
        raise ValueError(
            f"--delta {delta:g}: the loss of {form.name} is {loss_fn} here, which has none; --loss-fn huber"
        )
    if options.rank and form.fixed:
        raise ValueError(
            f"--rank with --fix {', '.join(form.fixed)}: laws are ranked with all of their parameters fitted; "
            "leave one of the two out"
        )


def _rows(source: Path, roles: Mapping[str, str], where: Sequence[str], inputs: Sequence[str]) -> "Table":
    """The table of a fit; of a folder only the finished runs, since the others have no final loss."""
    from kleiber.studies.laws import table

    finished = ("status = finished",) if source.is_dir() else ()
    return table.load(table.read(source), roles, (*finished, *where), inputs)


def _values(items: Sequence[str], option: str) -> dict[str, float]:
    """Numbers by name from items such as `E=1.8`; ValueError for an item that is malformed or contradicts another."""
    from kleiber.studies.laws.filters import number

    values: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        value = number(text)
        if value is None or not name.strip():
            raise ValueError(f"{option} {item!r}: must be NAME=NUMBER, such as E=1.8")
        if values.get(name.strip(), value) != value:
            raise ValueError(f"{option} {item!r}: {name.strip()} is already {values[name.strip()]:g}")
        values[name.strip()] = value
    return values


def _roles(
    source: Path, map: str | None, extra: Mapping[str, str | None] | None = None, inputs: Sequence[str] = ()
) -> dict[str, str]:
    """Columns by role: those of a folder of runs, then those of the options. ValueError for an unknown role."""
    from kleiber.studies.laws import noise_model, table

    asked, roles = table.parse_map(map, extra), dict.fromkeys([*inputs, "N", "D", "C", "L", *noise_model.EXTRA])
    for role, column in asked.items():
        if role not in roles:
            raise ValueError(f"--map {role}={column}: no law reads the role {role}; must be one of {', '.join(roles)}")
    return {**(table.OF_RUNS if source.is_dir() else {}), **asked}


def _record(part: "Table", form: "Law", name: str, options: "Options", by: str | None, group: str) -> Json:
    """The record of a fit; a user's law is recorded under its FILE.py:FN, and errors name their group."""
    from kleiber.studies.laws import analysis, laws_json

    try:
        record = analysis.analyse(part, replace(form, name=name) if ".py:" in name else form, options)
    except ValueError as error:
        raise ValueError(f"{by} = {group}: {error}" if by else str(error)) from error
    if options.rank and not record.get("ranking"):
        raise ValueError(f"--rank compares laws of N and D by compute, which {name} on this table does not allow")
    return laws_json.finite(record)


def _group(collection: Row, words: list[str]) -> tuple[Json, list[str]]:
    """The law of the group that the words name, and the other words; ValueError where they name none."""
    by, laws = collection["by"], collection["laws"]
    chosen = [argument.partition("=")[2] for argument in words if argument.partition("=")[0] == by]
    if len(chosen) != 1 or chosen[0] not in laws:
        raise ValueError(f"this file holds a law for each {by}: add {by}=VALUE, one of {', '.join(laws)}")
    return laws[chosen[0]], [argument for argument in words if argument.partition("=")[0] != by]


def _point(text: str) -> dict[str, float]:
    """Numbers by name from a point such as `N=7B,D=140B`; ValueError for a malformed part."""
    from kleiber.studies.laws.filters import number

    point = {}
    for item in filter(None, text.replace(" ", ",").split(",")):
        name, equals, value = item.partition("=")
        read = number(value) if equals else None
        if read is None:
            raise ValueError(f"predict {item!r}: must be NAME=NUMBER, such as N=1e9 or D=20B")
        if point.get(name.strip(), read) != read:
            raise ValueError(f"predict {item!r}: {name.strip()} is already {point[name.strip()]:g}")
        point[name.strip()] = read
    if not point:
        raise ValueError("predict: no point; add one such as N=1e9 D=20e9")
    return point


def _numbers(text: str, option: str) -> list[float]:
    from kleiber.studies.laws.filters import number

    read = [number(item) for item in text.split(",")]
    if any(value is None for value in read):
        raise ValueError(f"{option} {text!r}: must be numbers separated by commas, such as 1e20,1e21")
    return [value for value in read if value is not None]


def _refuse(error: ValueError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(ExitCode.BAD_INPUT) from error
