"""The commands `kleiber fit`, `predict` and `report`, with their options.

Numerical packages are imported when a command runs, so that `kleiber --help` is fast.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, NoReturn

import typer

from kleiber.config.errors import ExitCode
from kleiber.config.permissions import permit_data
from kleiber.config.system_errors import describe
from kleiber.records.terminal import print_line
from kleiber.types import Row

ColumnMap = Annotated[
    str | None,
    typer.Option(
        help="N=COL,D=COL,L=COL[,C=COL,X=COL]; for --law hyperparameter also lr=COL[,batch=COL,decay=COL]; for --law "
        "schedule run=COL,step=COL,lr=COL,loss=COL; for --law downstream N=COL,D=COL,loss=COL,"
        "acc=COL[,floor=COL,run=COL]; for --law mixture 'w=w_*,loss=COL[,N=COL,D=COL]'"
    ),
]
ParamsColumn = Annotated[
    str | None, typer.Option(metavar="COL", help="column of model parameters; same as --map N=COL")
]
DataColumn = Annotated[str | None, typer.Option(metavar="COL", help="column of training tokens; same as --map D=COL")]
LossColumn = Annotated[str | None, typer.Option(metavar="COL", help="column of the loss; same as --map L=COL")]
ComputeColumn = Annotated[str | None, typer.Option(metavar="COL", help="column of training FLOPs; same as --map C=COL")]
LossFn = Annotated[str | None, typer.Option(help="huber, lad or squared; default: as in the law's publication")]
Space = Annotated[
    str | None, typer.Option(help="scale of the residuals: log, linear or log10; default: as in the law's publication")
]
Delta = Annotated[
    float | None,
    typer.Option(help="Huber delta: larger residuals count linearly; on the scale of --space; default 0.001"),
]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="COL", help="column that names rows with shared noise; default for run folders: trunk"),
]
Fixed = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="fix a parameter at a value; may be repeated")
]
At = Annotated[
    str | None,
    typer.Option(metavar="NAME=VALUE,...", help="also report the objective at these values of all parameters"),
]
Sigma = Annotated[
    str | None, typer.Option(metavar="COL", help="column of the standard error of the loss, in the units of the loss")
]
Cuts = Annotated[
    str | None,
    typer.Option(
        metavar="C,C,...", help="compute cuts of the backtests (sizes N if compute is unknown); default: three cuts"
    ),
]
Exclude = Annotated[
    str, typer.Option(help="none, or suspects: exclude rows that look diverged, badly tuned or unfinished")
]
GroupColumn = Annotated[
    str | None, typer.Option("--by", metavar="COL", help="fit each value of this column separately")
]
Bootstrap = Annotated[
    int, typer.Option(min=0, help="number of bootstrap resamples: 0 for none, or at least 2 / (1 - level)")
]
TrustedLaw = Annotated[
    str | None, typer.Option(metavar="FILE.py:FUNCTION", help="run this function, if LAWS.json was fitted with it")
]
ServedTokens = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS",
        help="best size and training tokens for L=LOSS or C=FLOPs, if the model will serve this many tokens",
    ),
]
MaxParams = Annotated[
    str | None, typer.Option(metavar="N", help="with --serve: largest number of parameters, by memory or latency")
]
PointOrGroup = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="N=.. D=..", help="the point; add COLUMN=VALUE to choose one of the laws of fit --by COLUMN"
    ),
]
ScheduleName = Annotated[
    str | None,
    typer.Option(metavar="NAME|TABLE", help="of a law of schedules: predict it, the best decay, or a table of rates"),
]
ScheduleSteps = Annotated[int | None, typer.Option(metavar="STEPS", help="with --schedule NAME: length of the run")]
MaxDecades = Annotated[
    float, typer.Option(min=0, help="refuse predictions more than this many factors of 10 outside the fitted rows")
]
ForceAll = Annotated[
    bool, typer.Option("--force", help="predict even beyond --max-decades, and from a law that was refused")
]
Where = Annotated[list[str] | None, typer.Option(help='use only rows with "loss < 4 and N >= 1e8"; may be repeated')]
PredictAt = Annotated[
    list[str] | None, typer.Option(metavar="N=..,D=..", help="also predict the loss at this N and D; may be repeated")
]
Rank = Annotated[
    bool, typer.Option("--rank", help="rank several laws by their error at the largest compute, left out of the fit")
]
Form = Annotated[
    str | None,
    typer.Option(
        help="for --law mixture: ridge, exponential or linear; for --law downstream: sigmoid or exponential; default: "
        "mixture by cross-validation, downstream sigmoid"
    ),
]
Route = Annotated[
    str | None, typer.Option(help="for --law downstream: chained (through the loss) or direct; default: by backtests")
]
JsonFile = Annotated[Path | None, typer.Option(metavar="OUT.json", help="write the fitted law to this file")]


def html_path(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Returns the value of an option that names a page to write. Raises ValueError unless it ends in .html."""
    if value is not None and value.suffix.lower() != ".html":
        raise ValueError(f"{param.opts[0]} {value} must end in .html, because it is a page for a browser")
    return value


HtmlFile = Annotated[
    Path | None, typer.Option(metavar="OUT.html", callback=html_path, help="write a page with figures to this file")
]


def fit(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="TABLE", help="csv, jsonl, parquet, folder of runs, or W&B's")],
    law: Annotated[str, typer.Option(help="shipped law, FILE.py:FUNCTION, or mylab.FUNCTION")] = "chinchilla",
    map: ColumnMap = None, params: ParamsColumn = None, data: DataColumn = None, loss: LossColumn = None,
    compute: ComputeColumn = None, loss_fn: LossFn = None, delta: Delta = None, space: Space = None,
    where: Where = None, by: GroupColumn = None, bootstrap: Bootstrap = 1000, cluster: Cluster = None,
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
    form: Form = None,
    route: Route = None,
) -> None:  # fmt: skip
    """Fit a scaling law to a table of runs: prints parameters with intervals, backtests and verdicts."""
    from kleiber.studies import law_report
    from kleiber.studies.fitted_law import check_options, fit_groups, select_rows
    from kleiber.studies.laws import analysis, laws_json, table_laws
    from kleiber.studies.laws.filters import parse_map, parse_numbers, parse_point, parse_values

    try:
        if report:
            import_page_module("law_report")
        if (code := table_laws.run_fit(context.params, _written(context))) is not None:
            raise typer.Exit(code)
        shape = laws_json.law_by_option(law).fix(parse_values(fix or (), "--fix"))
        columns = parse_map(map, {"N": params, "D": data, "L": loss, "C": compute})
        rows = select_rows(source, columns, where or (), shape, sigma)
        options = analysis.Options(
            loss_fn, 1e-3 if delta is None else delta, space, bootstrap, seed=seed, level=level, exclude=exclude,
            cluster=cluster or ("trunk" if source.is_dir() else None), rank=rank,
            backtest=None if backtest is None else parse_numbers(backtest, "--backtest"),
            predict=[parse_point(text) for text in predict or ()], max_decades=float("inf") if force else max_decades,
            at=None if at is None else parse_values(at.split(","), "--at"),
        )  # fmt: skip
        check_options(shape, options, delta, sigma)
        laws = fit_groups(rows, by, shape, law, options)
        records = {group: fitted.record for group, fitted in laws.items()}
        if json is not None:
            collection = {"schema": "kleiber.laws/1", "by": by, "laws": records}
            laws_json.write(collection if by else records[""], json)
    except ValueError as error:
        _refuse(error)
    for group, record in records.items():
        print_line("\n".join([*([f"\n{by} = {group}"] if by else []), *law_report.lines(record)]))
    if report is not None:
        tables = {group: fitted.rows for group, fitted in laws.items() if fitted.rows is not None}
        law_report.write(report, source, shape, records, tables, by)
        print_line(f"report: {report}")
    raise typer.Exit(ExitCode.DONE if all(fitted.accepted for fitted in laws.values()) else ExitCode.UNDECIDED)


def _written(context: typer.Context) -> list[str]:
    """Returns the names of the arguments that stand on the command line."""
    origins = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, origin in origins.items() if origin is not None and origin.name == "COMMANDLINE"]


def predict(
    context: typer.Context,
    laws_json: Annotated[Path, typer.Argument(metavar="LAWS.json", help="the law, or the folder of a study")],
    at: PointOrGroup = None,
    on: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="predict the rows of this table and compare with their losses")
    ] = None,
    map: Annotated[str | None, typer.Option(help="columns of TABLE: N=COL,D=COL,L=COL")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help='use only rows of TABLE with "C > 1e13"; may be repeated')
    ] = None,
    serve: ServedTokens = None,
    max_params: MaxParams = None,
    law: TrustedLaw = None,
    max_decades: MaxDecades = 3.0,
    force: ForceAll = False,
    schedule: ScheduleName = None,
    steps: ScheduleSteps = None,
    json: Annotated[Path | None, typer.Option(metavar="OUT.json", help="write the predictions to this file")] = None,
) -> None:
    """Predict the loss at a point, with its confidence interval and the prediction interval of a new run.

    With --on TABLE, predict every row of the table and compare with the observed losses, where it has them. With
    --schedule NAME, predict a run from a law of schedules; lr=RATE decay=0.1 set its arguments. With --serve TOKENS,
    choose the model with the least FLOPs of training and serving. What the law failed at when it was fitted follows
    the prediction: parameters that are not identified, tests that a naive forecast won. Exit code 3 if the law was
    refused when it was fitted, unless --force is set.
    """
    from kleiber.studies import fitted_law
    from kleiber.studies.laws import serving, table_laws
    from kleiber.studies.laws.filters import parse_map
    from kleiber.studies.laws.laws_json import law_of, read

    try:
        laws_json = laws_json / "laws.json" if laws_json.is_dir() else laws_json
        record, words = table_laws.read_record(laws_json), list(at or ())
        entry, most = record or read(laws_json, law), float("inf") if force else max_decades
        if entry["schema"] == "kleiber.laws/1":
            entry, words = fitted_law.select_group(entry, words)
        point = [*words, *(f"--{name}" for name in table_laws.CHOICES if context.params.get(name) is not None)]
        _check_on(on, point, map is not None or bool(where))
        _check_accepted(entry, force)
        if record is not None:
            _write_predictions(json, *table_laws.predict(record, words, context.params, most, _written(context)))
            return
        table_laws.check_choices(context.params)
        form = law_of(entry, law)
        if serve is not None or max_params is not None:
            _check_serving(json, on)
            print_line("\n".join(serving.lines_for(entry, form, words, serve, max_params, most)))
            return
        if on is None:
            predicted = fitted_law.predict_point(entry, form, words, most)
        else:
            rows = fitted_law.select_rows(on, parse_map(map, {}), where or (), form, measured=False)
            predicted = fitted_law.compare(entry, form, rows, most)
    except ValueError as error:
        _refuse(error)
    _write_predictions(json, *predicted)


def _write_predictions(json: Path | None, content: Row, lines: Sequence[str]) -> None:
    """Prints the lines of a prediction, and writes its content to the file of --json, if there is one."""
    from kleiber.records.files import write_json

    if json is not None:
        write_json(json, content)
    print_line("\n".join(lines))


def _check_on(on: Path | None, point: Sequence[str], selects: bool) -> None:
    """Raises ValueError for a point and a table, and for options that select from a table that is missing.

    point  what stands on the command line for a point
    """
    if on is None and selects:
        raise ValueError("--map and --where select from the table of --on TABLE, but --on is missing")
    if on is not None and point:
        raise ValueError(f"{' '.join(point)} and --on {on}: give either a point or a table, not both")


def _check_serving(json: Path | None, on: Path | None) -> None:
    """Raises ValueError for options that ask for another answer than a model to serve."""
    if others := [f"{name} {path}" for name, path in (("--on", on), ("--json", json)) if path is not None]:
        raise ValueError(
            f"{' and '.join(others)}: predict losses, and --serve and --max-params choose a model: remove one of them"
        )


def _check_accepted(entry: Row, force: bool) -> None:
    """Prints why a law of laws.json was refused; ends with 3 if it was, unless `force` is set."""
    from kleiber.studies.laws.verdicts import verdict_lines

    refusals = [line for line in verdict_lines(entry) if line.startswith("refuse: ")]
    for line in refusals:
        print_line(line, err=True)
    if refusals and not force:
        print_line("a refused law predicts nothing: add --force to predict anyway", err=True)
        raise typer.Exit(ExitCode.UNDECIDED)


def report(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|runs.jsonl.gz", help="folder of a study or sweep, or an archive of its runs")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="OUT.html", callback=html_path, help="write only the page; default: all files, to DIR"),
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
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="exit with 0 whatever the claims and the law say")
    ] = False,
    data: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="URL or pattern that the study may read; may be repeated")
    ] = None,
) -> None:
    """Analyze the finished runs of a study; writes laws.json, findings.json, figures and an HTML page.

    Runs that belong to no study are shown side by side: a table, curves, and parallel coordinates.

    Exit code 5 if a claim of the study is contradicted; 3 if a claim is undecided or not tested, or the law is refused
    or not identified; else 0.
    """
    permit_data(data or ())
    code = make_report(source, out, study, also or (), wandb)
    raise typer.Exit(ExitCode.DONE if exit_zero and code in (ExitCode.CONTRADICTED, ExitCode.UNDECIDED) else code)


def make_report(
    source: Path, out: Path | None = None, study: str | None = None, also: Sequence[Path] = (), mirror: bool = False,
    laws: bool = True,
) -> ExitCode:  # fmt: skip
    """Writes a report, prints its answer or why it cannot be made, and returns the exit code.

    laws  whether a law that is refused or not identified counts, as in `kleiber report`; otherwise claims alone do
    """
    from kleiber.studies.decision import Decision
    from kleiber.studies.study import exit_code

    try:
        pages = import_page_module("report")
        findings = pages.report(source, out, study, also, mirror)
    except (ValueError, OSError) as error:
        print_line(f"kleiber: {describe(error) or error}", err=True)
        return ExitCode.BAD_INPUT
    print_line("\n".join(pages.closing_lines(findings, out or pages.folder_of(source) / "report.html")))
    decision = findings["decision"]
    undetermined = laws and (findings["refused"] or bool(findings["not_identified"]))
    return exit_code(None if decision is None else Decision(decision), undetermined)


def import_page_module(name: str) -> ModuleType:
    """Imports the module of `kleiber.studies` that writes a page. Raises ValueError without a plotting package."""
    try:
        for drawing in ("altair", "vl_convert"):
            import_module(drawing)
    except ImportError as error:
        raise ValueError(f"{error.name}, which reports need, is not installed: pip install 'kleiber[report]'") from None
    return import_module(f"kleiber.studies.{name}")


def _refuse(error: ValueError) -> NoReturn:
    print_line(f"kleiber: {error}", err=True)
    raise typer.Exit(ExitCode.BAD_INPUT) from error
