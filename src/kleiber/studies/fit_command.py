"""The commands `kleiber fit`, `predict` and `report`.

Exit codes: 0 on success, 2 for bad input, 3 if the law was fitted but is not identified or is refused. Numerical
packages are imported when a command runs, so that `kleiber --help` is fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from kleiber.config.errors import ExitCode
from kleiber.studies.fit_options import (
    At,
    Bootstrap,
    Cluster,
    ComputeColumn,
    Cuts,
    DataColumn,
    Delta,
    Exclude,
    Fixed,
    HtmlFile,
    JsonFile,
    LossColumn,
    LossFn,
    MaxDecades,
    ParamsColumn,
    PredictAt,
    Rank,
    Sigma,
    Space,
    TrustedLaw,
    Where,
    parse_numbers,
    parse_point,
    parse_values,
)
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.laws.analysis import Options
    from kleiber.studies.laws.law import Law
    from kleiber.studies.laws.table import Table


def fit(
    source: Annotated[Path, typer.Argument(metavar="TABLE", help="csv, jsonl, parquet, or a folder of runs")],
    law: Annotated[str, typer.Option(help="name of a shipped law, or FILE.py:FUNCTION for another one")] = "chinchilla",
    map: Annotated[str | None, typer.Option(help="N=COL,D=COL,L=COL[,C=COL,X=COL]")] = None,
    params: ParamsColumn = None,
    data: DataColumn = None,
    loss: LossColumn = None,
    compute: ComputeColumn = None,
    loss_fn: LossFn = None,
    delta: Delta = None,
    space: Space = None,
    where: Where = None,
    by: Annotated[str | None, typer.Option(metavar="COL", help="fit each value of this column separately")] = None,
    bootstrap: Bootstrap = 1000,
    cluster: Cluster = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the bootstrap")] = 0,
    level: Annotated[float, typer.Option(help="confidence level of all intervals, between 0 and 1")] = 0.9,
    fix: Fixed = None,
    at: At = None,
    sigma: Sigma = None,
    backtest: Cuts = None,
    predict: PredictAt = None,
    exclude: Exclude = "none",
    rank: Rank = False,
    max_decades: MaxDecades = 3.0,
    force: Annotated[bool, typer.Option("--force", help="predict even beyond --max-decades")] = False,
    json: JsonFile = None,
    report: HtmlFile = None,
) -> None:
    """Fit a scaling law to a table of runs: prints parameters with intervals, backtests and verdicts."""
    from kleiber.studies.laws import analysis, laws_json
    from kleiber.studies.laws.law_file import law_by_option

    try:
        pages = _import_page_module() if report else None
        form = law_by_option(law).fix(parse_values(fix or (), "--fix"))
        named = _roles(source, map, {"N": params, "D": data, "L": loss, "C": compute}, form.inputs)
        cluster = cluster or ("trunk" if source.is_dir() else None)
        rows = _rows(source, {**named, **({"sigma": sigma} if sigma else {})}, where or (), form.inputs)
        options = analysis.Options(
            loss_fn, 1e-3 if delta is None else delta, space, bootstrap, cluster, seed, level,
            backtest=None if backtest is None else parse_numbers(backtest, "--backtest"),
            predict=[parse_point(text) for text in predict or ()],
            exclude=exclude, max_decades=float("inf") if force else max_decades, rank=rank,
            at=None if at is None else parse_values(at.split(","), "--at"),
        )  # fmt: skip
        _check(form, options, delta)
        parts = rows.split(by) if by else {"": rows}
        records = {group: _record(part, form, law, options, by, group) for group, part in parts.items()}
        if json:
            laws_json.write({"schema": "kleiber.laws/1", "by": by, "laws": records} if by else records[""], json)
    except ValueError as error:
        _refuse(error)
    print_records(records, by)
    if pages is not None:
        pages.write(report, source, form, records, parts, by)
        typer.echo(f"report: {report}")
    if not all(analysis.accepted(entry) for entry in records.values()):
        raise typer.Exit(ExitCode.UNDECIDED)


def print_records(records: Mapping[str, Row], by: str | None) -> None:
    """Prints the fitted laws, each after its group if the table was split by a column."""
    from kleiber.studies.laws.laws_json import lines

    for group, entry in records.items():
        typer.echo("\n".join(([f"\n{by} = {group}"] if by else []) + lines(entry)))


def predict(
    laws_json: Annotated[Path, typer.Argument(metavar="LAWS.json")],
    at: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="N=.. D=..", help="the point; add COLUMN=VALUE to choose one of the laws of fit --by COLUMN"
        ),
    ] = None,
    on: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="predict the rows of this table and compare with their losses")
    ] = None,
    map: Annotated[str | None, typer.Option(help="columns of TABLE: N=COL,D=COL,L=COL")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help='use only rows of TABLE with "C > 1e13"; may be repeated')
    ] = None,
    law: TrustedLaw = None,
    max_decades: MaxDecades = 3.0,
    force: Annotated[bool, typer.Option("--force", help="predict even beyond --max-decades")] = False,
) -> None:
    """Predict the loss at a point, with its confidence interval and the prediction interval of a new run.

    With --on TABLE, predict every row of the table and compare the predictions with the observed losses.
    """
    from kleiber.studies.laws import prediction
    from kleiber.studies.laws.law_file import law_of, read
    from kleiber.studies.laws.laws_json import comparison_lines, prediction_line

    try:
        entry, words = read(laws_json, law), list(at or ())
        if entry["schema"] == "kleiber.laws/1":
            entry, words = _group(entry, words)
        form, most = law_of(entry, law), float("inf") if force else max_decades
        if on is not None:
            if words:
                raise ValueError(f"{' '.join(words)} and --on {on}: give either a point or a table, not both")
            rows = _rows(on, _roles(on, map, inputs=form.inputs), where or (), form.inputs)
            comparison = prediction.compare_with_rows(entry, form, rows, most)
            typer.echo("\n".join(comparison_lines(comparison, entry["level"])))
            return
        if map or where:
            raise ValueError("--map and --where select from the table of --on TABLE, but --on is missing")
        answer = prediction.predict(entry, form, parse_point(",".join(words)), most)
        if "refused" in answer:
            raise ValueError(f"{' '.join(words)}: {answer['refused']}; add --force to predict anyway")
    except ValueError as error:
        _refuse(error)
    typer.echo(prediction_line(answer, entry["level"]))


def report(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|runs.jsonl.gz", help="folder of a study or sweep, or an archive of its runs")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="OUT.html", help="write only the HTML page, to this file; default: all files, to DIR"),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="analyze the runs as this study; default: the study in their config"),
    ] = None,
    also: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="include the runs of this folder; may be repeated")
    ] = None,
    wandb: Annotated[
        bool, typer.Option("--wandb", help="also log the report to W&B, if the runs were logged there")
    ] = False,
) -> None:
    """Analyze the finished runs of a study; writes laws.json, findings.json, figures and an HTML page.

    Exit code 3 if the law of the study is refused or not identified; of study=compare 0 if its claims are supported, 5
    if one is contradicted, and 3 otherwise.
    """
    try:
        pages = _import_page_module("report")
        findings = pages.report(source, out, study, also or (), wandb)
    except (ValueError, OSError) as error:
        _refuse(ValueError(str(error)))
    typer.echo("\n".join(pages.closing_lines(findings, out or pages.folder_of(source) / "report.html")))
    raise typer.Exit(pages.exit_code(findings))


def _import_page_module(name: str = "fit_page") -> ModuleType:
    """Imports the module of `kleiber.studies` that writes a page.

    Raises ValueError if a plotting package is not installed.
    """
    try:
        for drawing in ("altair", "vl_convert"):
            import_module(drawing)
    except ImportError as error:
        raise ValueError(
            f"{error.name}, which reports need, is not installed: run pip install 'kleiber[report]'"
        ) from None
    return import_module(f"kleiber.studies.{name}")


def _check(form: "Law", options: "Options", delta: float | None) -> None:
    """Raises ValueError for an option that would have no effect, and for too few bootstrap resamples."""
    from kleiber.studies.laws.analysis import fewest_draws
    from kleiber.studies.laws.laws_json import percent

    fewest, loss_fn = fewest_draws(options.level), options.loss_fn or form.loss_fn
    if 0 < options.bootstrap < fewest:
        raise ValueError(
            f"--bootstrap {options.bootstrap} must be at least {fewest} for {percent(options.level)} intervals, or 0 "
            "for no intervals"
        )
    if delta is not None and loss_fn != "huber":
        raise ValueError(
            f"--delta {delta:g} has no effect on the {loss_fn} loss of {form.name}; add --loss-fn huber or remove "
            "--delta"
        )
    if options.rank and form.fixed:
        raise ValueError(
            f"--rank fits all parameters of every law, so it excludes --fix {', '.join(form.fixed)}; remove one of the "
            "two options"
        )


def _rows(source: Path, roles: Mapping[str, str], where: Sequence[str], inputs: Sequence[str]) -> "Table":
    """Loads the table to fit; of a folder only the finished runs, since other runs have no final loss."""
    from kleiber.studies.laws import table

    finished = ("status = finished",) if source.is_dir() else ()
    return table.load(table.read(source), roles, (*finished, *where), inputs)


def _roles(
    source: Path, map: str | None, extra: Mapping[str, str | None] | None = None, inputs: Sequence[str] = ()
) -> dict[str, str]:
    """Returns the column of each role (N, D, C, L and other inputs of the law); the options override the defaults.

    A folder of runs has default columns. Raises ValueError for an unknown role.
    """
    from kleiber.studies.laws import noise_model, table

    asked, roles = table.parse_map(map, extra), dict.fromkeys([*inputs, "N", "D", "C", "L", *noise_model.EXTRA])
    for role, column in asked.items():
        if role not in roles:
            raise ValueError(f"--map {role}={column}: the role {role} must be one of {', '.join(roles)}")
    return {**(table.OF_RUNS if source.is_dir() else {}), **asked}


def _record(part: "Table", form: "Law", name: str, options: "Options", by: str | None, group: str) -> Json:
    """Fits one table and returns its record for laws.json; errors start with the group, if there are groups.

    A law from a file is recorded under the name FILE.py:FUNCTION.
    """
    from kleiber.studies.laws import analysis, laws_json

    try:
        record = analysis.analyze(part, replace(form, name=name) if ".py:" in name else form, options)
    except ValueError as error:
        raise ValueError(f"{by} = {group}: {error}" if by else str(error)) from error
    if options.rank and not record.get("ranking"):
        raise ValueError(
            f"--rank ranks laws of N and D by their error at the largest compute; {name} is not such a law, or this "
            "table has too few rows or no compute: remove --rank"
        )
    return laws_json.without_nonfinite(record)


def _group(collection: Row, words: list[str]) -> tuple[Json, list[str]]:
    """Returns the law of the group that COLUMN=VALUE in `words` chooses, and the other words.

    Raises ValueError if no word, or more than one, chooses a group.
    """
    by, laws = collection["by"], collection["laws"]
    chosen = [argument.partition("=")[2] for argument in words if argument.partition("=")[0] == by]
    if len(chosen) != 1 or chosen[0] not in laws:
        raise ValueError(f"this file has one law for each value of {by}: add {by}=VALUE, one of {', '.join(laws)}")
    return laws[chosen[0]], [argument for argument in words if argument.partition("=")[0] != by]


def _refuse(error: ValueError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(ExitCode.BAD_INPUT) from error
