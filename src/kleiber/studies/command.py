"""`kleiber fit`, `predict` and `report`: read the command line, call the analysis, print a table, choose the exit code.

Exit codes: 0 done, 2 bad input, 3 fitted but not identified. It computes nothing itself and refuses to print a number
without an interval or the words "not identified". numpy is imported when a command runs, not when it is listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

FEWEST = 20  # resamples of which a 90 % interval leaves one out on either side
Column = Annotated[str | None, typer.Option(help="column, a synonym of --map", show_default=False)]


def fit(
    source: Annotated[Path, typer.Argument(metavar="TABLE", help="csv, jsonl, parquet, or a folder of runs")],
    law: Annotated[str, typer.Option(help="a shipped law or FILE.py:FN")] = "chinchilla",
    map: Annotated[str | None, typer.Option(help="N=COL,D=COL,L=COL[,C=COL,X=COL]")] = None,
    params: Column = None,
    data: Column = None,
    loss: Column = None,
    compute: Column = None,
    loss_fn: Annotated[str | None, typer.Option(help="huber, lad or squared; default: the law's source's")] = None,
    delta: Annotated[
        float | None, typer.Option(help="where Huber turns linear, on the scale of --space; .001 without it")
    ] = None,
    space: Annotated[str | None, typer.Option(help="log, linear or log10; default: the law's source's")] = None,
    where: Annotated[list[str] | None, typer.Option(help='"loss < 4 and N >= 1e8"; repeat to narrow')] = None,
    by: Annotated[str | None, typer.Option(help="one fit per value of this column")] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="resamples; 0 for none, else 20 or more")] = 1000,
    cluster: Annotated[
        str | None, typer.Option(help="column of the trunk whose branches share noise; trunk for runs")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    backtest: Annotated[str | None, typer.Option(help="compute cuts, 1e20,1e21; default: three of them")] = None,
    predict: Annotated[list[str] | None, typer.Option(help="N=..,D=..; repeat for more")] = None,
    exclude: Annotated[str, typer.Option(help="rules, or none")] = "diverged,undertuned",
    rank: Annotated[bool, typer.Option("--rank", help="rank laws by leave-largest-compute-out error")] = False,
    max_decades: Annotated[float, typer.Option(min=0, help="refuse predictions farther outside than this")] = 3.0,
    force: Annotated[bool, typer.Option("--force", help="predict beyond --max-decades")] = False,
    json: Annotated[Path | None, typer.Option(help="write laws.json here")] = None,
    report: Annotated[Path | None, typer.Option(metavar="OUT.html", help="write a page with figures here")] = None,
) -> None:
    """Fit a law to a table of runs: parameters with intervals, backtests, verdicts."""
    from kleiber.studies import analysis, record, table
    from kleiber.studies import law as laws

    try:
        pages = _pages() if report else None
        form = laws.find(law)
        _check(form, bootstrap, delta, loss_fn or form.loss_fn)
        named = _roles(source, map, {"N": params, "D": data, "L": loss, "C": compute}, form.inputs)
        cluster = cluster or ("trunk" if source.is_dir() else None)
        rows = table.load(table.read(source), named, where or (), form.inputs)
        options = analysis.Options(
            loss_fn, 1e-3 if delta is None else delta, space, bootstrap, cluster, seed,
            backtest=None if backtest is None else _numbers(backtest, "--backtest"),
            predict=[_point(text) for text in predict or ()],
            exclude=() if exclude == "none" else tuple(filter(None, exclude.split(","))),
            max_decades=float("inf") if force else max_decades, rank=rank,
        )  # fmt: skip
        parts = rows.split(by) if by else {"": rows}
        found = {group: _one(part, form, law, options, by, group) for group, part in parts.items()}
        if json:
            record.write({"schema": "kleiber.laws/1", "by": by, "laws": found} if by else found[""], json)
    except ValueError as error:
        _refuse(error)
    for group, entry in found.items():
        typer.echo("\n".join(([f"\n{by} = {group}"] if by else []) + lines(entry)))
    if pages is not None:
        pages.write(report, source, form, found, parts, by)
        typer.echo(f"report: {report}")
    if not all(analysis.identified(entry) for entry in found.values()):
        raise typer.Exit(3)


def predict(
    laws_json: Annotated[Path, typer.Argument(metavar="LAWS.json")],
    at: Annotated[list[str] | None, typer.Argument(metavar="N=.. D=..", help="and COLUMN=VALUE where --by was")] = None,
    on: Annotated[Path | None, typer.Option(metavar="TABLE", help="rows to predict instead, and to compare")] = None,
    map: Annotated[str | None, typer.Option(help="the columns of --on: N=COL,D=COL,L=COL")] = None,
    where: Annotated[list[str] | None, typer.Option(help='rows of --on: "C > 1e13"; repeat to narrow')] = None,
    max_decades: Annotated[float, typer.Option(min=0)] = 3.0,
    force: Annotated[bool, typer.Option("--force", help="predict beyond --max-decades")] = False,
) -> None:
    """Predict from a fitted law, with its interval and that of one new run; or hold it against the rows of --on."""
    from kleiber.studies import against, analysis, record, table
    from kleiber.studies import law as laws

    try:
        entry, words = record.read(laws_json), list(at or ())
        if entry["schema"] == "kleiber.laws/1":
            entry, words = _group(entry, words)
        form, most = laws.find(entry["law"]), float("inf") if force else max_decades
        if on is not None:
            if words:
                raise ValueError(f"{' '.join(words)}: give points or --on {on}, not both")
            rows = table.load(table.read(on), _roles(on, map, inputs=form.inputs), where or (), form.inputs)
            typer.echo("\n".join(_held(against.hold(entry, form, rows, most), entry["level"])))
            return
        if map or where:
            raise ValueError("--map and --where are about the rows of --on TABLE, which is missing")
        answer = analysis.predict(entry, form, _point(",".join(words)), most)
        if "refused" in answer:
            raise ValueError(f"{' '.join(words)}: {answer['refused']}; --force predicts all the same")
    except ValueError as error:
        _refuse(error)
    typer.echo(_prediction(answer, entry["level"]))


def report(
    source: Annotated[
        Path, typer.Argument(metavar="DIR|runs.jsonl.gz", help="a study or sweep, or what is kept of it")
    ],
    out: Annotated[Path | None, typer.Option(help="write the page here and nothing else; default: all in DIR")] = None,
    study: Annotated[
        str | None, typer.Option(help="read the runs as this study's; default: as their config says")
    ] = None,
    also: Annotated[list[Path] | None, typer.Option(help="runs of a further folder; repeat for more")] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="mirror it to W&B, as the runs were")] = False,
) -> None:
    """Analyse the runs of a study again: laws.json, findings.json, figures and one HTML page."""
    try:
        pages = _pages("report")
        found = pages.report(source, out, study, also or (), wandb)
    except (ValueError, OSError) as error:
        _refuse(ValueError(str(error)))
    typer.echo("\n".join(pages.closing_lines(found, out or pages.folder_of(source) / "report.html")))


def _pages(name: str = "fit_page") -> Any:
    """The module of studies that writes a page. Raises ValueError where what it draws with is not installed."""
    try:
        for drawing in ("altair", "vl_convert"):
            import_module(drawing)
    except ImportError as error:
        raise ValueError(
            f"{error.name} is not installed: a report needs the extra, pip install 'kleiber[report]'"
        ) from None
    return import_module(f"kleiber.studies.{name}")


def _check(form: Any, bootstrap: int, delta: float | None, loss_fn: str) -> None:
    """Refuses options that would have no effect, and draws too few for an interval."""
    if 0 < bootstrap < FEWEST:
        raise ValueError(f"--bootstrap {bootstrap}: a 90% interval needs {FEWEST} resamples or more; 0 for none")
    if delta is not None and loss_fn != "huber":
        raise ValueError(
            f"--delta {delta:g}: the loss of {form.name} is {loss_fn} here, which has none; --loss-fn huber"
        )


def _roles(
    source: Path, map: str | None, extra: Mapping[str, str | None] | None = None, inputs: Sequence[str] = ()
) -> dict[str, str]:
    """Columns by role, as asked for; a folder of runs has its own where nothing was. ValueError for a role of none."""
    from kleiber.studies import pose, table

    asked, known = table.parse_map(map, extra), dict.fromkeys([*inputs, "N", "D", "C", "L", *pose.EXTRA])
    for role, column in asked.items():
        if role not in known:
            raise ValueError(f"--map {role}={column}: nothing reads the role {role}; one of {', '.join(known)}")
    return {**(table.OF_RUNS if source.is_dir() else {}), **asked}


def _one(part: Any, form: Any, name: str, options: Any, by: str | None, group: str) -> dict[str, Any]:
    """One record; a user law is recorded under the FILE.py:FN it was called by, and errors name their group."""
    from kleiber.studies import analysis, record

    try:
        found = analysis.analyse(part, replace(form, name=name) if ".py:" in name else form, options)
    except ValueError as error:
        raise ValueError(f"{by} = {group}: {error}" if by else str(error)) from error
    if options.rank and not found.get("ranking"):
        raise ValueError(f"--rank compares laws of N and D by compute: not of {name} on this table")
    return record.finite(found)


def _group(collection: Mapping[str, Any], words: list[str]) -> tuple[dict[str, Any], list[str]]:
    by, found = collection["by"], collection["laws"]
    chosen = [word.partition("=")[2] for word in words if word.partition("=")[0] == by]
    if len(chosen) != 1 or chosen[0] not in found:
        raise ValueError(f"this file holds one law per {by}: add {by}=VALUE, one of {', '.join(found)}")
    return found[chosen[0]], [word for word in words if word.partition("=")[0] != by]


def _point(text: str) -> dict[str, float]:
    """`N=7B,D=140B` as numbers; ValueError with the part that is none."""
    from kleiber.studies.where import number

    point = {}
    for item in filter(None, text.replace(" ", ",").split(",")):
        name, found, value = item.partition("=")
        read = number(value) if found else None
        if read is None:
            raise ValueError(f"predict {item!r}: write NAME=NUMBER, such as N=1e9 or D=20B")
        if point.get(name.strip(), read) != read:
            raise ValueError(f"predict {item!r}: {name.strip()} is already {point[name.strip()]:g}")
        point[name.strip()] = read
    if not point:
        raise ValueError("predict: no point given; write N=1e9 D=20e9")
    return point


def _numbers(text: str, option: str) -> list[float]:
    from kleiber.studies.where import number

    read = [number(item) for item in text.split(",")]
    if any(value is None for value in read):
        raise ValueError(f"{option} {text!r}: write numbers separated by commas, such as 1e20,1e21")
    return [value for value in read if value is not None]


def _refuse(error: ValueError) -> NoReturn:
    typer.echo(f"error: {error}", err=True)
    raise typer.Exit(2) from error


def lines(entry: Mapping[str, Any]) -> list[str]:
    """The printed form of a record: one line per parameter, backtest, prediction and verdict."""
    level, goal = f"{entry['level']:.0%}", entry["objective"]
    delta = f", delta {goal['delta']:g}" if goal["delta"] else ""
    out = [f"{entry['law']}: {entry['formula']}   ({entry['source']})"]
    out.append(
        f"{entry['n']} rows, {len(entry['excluded'])} excluded; "
        f"{goal['kind']}{delta} in {goal['space']}: {goal['value']:.6g}"
    )
    out += [
        f"  {name:<10} {_estimate(value, level)}" for name, value in {**entry["params"], **entry["derived"]}.items()
    ]
    out.append(f"residual rms {entry['residual_rms']:.3g} ({goal['space']}); intervals {_kind(entry)}")
    for one in entry["approaches"]:
        out.append(f"  approach {one['approach']}: a = {one['a']:.4f}, {level} [{one['lo']:.4f}, {one['hi']:.4f}]")
    for one in entry["accounting"]:
        text = f"a = {one['a']:.4f}, {level} [{one['lo']:.4f}, {one['hi']:.4f}], shift {one['shift']:+.4f}"
        out.append(f"  {one['convention']}, approach {one['approach']}: {text}")
    for test in entry["backtests"]:
        naive = ", ".join(f"{name} {value:.2%}" for name, value in test["naive"].items())
        held = test["coverage"]
        covers = "no intervals" if held is None else f"{level} interval covers {held:.0%}"
        out.append(
            f"  backtest C = {test['cut']:.3g}: {test['n_train']} -> {test['n_test']} rows, error {test['mare']:.2%}, "
            f"bias {test['bias']:+.2%}, {covers}; naive: {naive}"
        )
    for one in entry.get("ranking", ()):
        out.append(
            f"  ranked {one['law']}: error {one['mare']:.2%} on the {one['n_test']} largest, AIC {one['aic']:.1f}"
        )
    for one in entry.get("with_without", ()):
        numbers = ", ".join(f"{name} {_short(value)}" for name, value in one.items() if isinstance(value, Mapping))
        out.append(f"  {one['excluded_rows']} the excluded rows (n = {one['n']}), {level}: {numbers}")
    out += [f"  {_prediction(one, entry['level'])}" for one in entry["predictions"]]
    return out + [f"{verdict['level']}: {verdict['text']} [{verdict['code']}]" for verdict in entry["verdicts"]]


def _estimate(value: Mapping[str, Any], level: str) -> str:
    point = "-" if value["value"] is None else f"{value['value']:.6g}"
    if not value["identified"]:
        return f"not identified ({value.get('reason') or 'no interval'}; least objective at {point})"
    return f"{point}   {level} [{value['lo']:.5g}, {value['hi']:.5g}]"


def _short(value: Mapping[str, Any]) -> str:
    if value["lo"] is None:
        return f"not identified (least objective at {value['value']:.4g})"
    return f"{value['value']:.4g} [{value['lo']:.4g}, {value['hi']:.4g}]"


def _kind(entry: Mapping[str, Any]) -> str:
    used = entry["bootstrap"]
    return f"by profile and {used['kind']} bootstrap ({used['draws']} draws)" if used else "by profile"


def _held(found: Mapping[str, Any], level: float) -> list[str]:
    """The printed form of a law against rows: a line a cell, then the errors."""
    out = [f"{_prediction(one, level)}; found {one['target']:.6g} ({one['runs']} runs)" for one in found["cells"]]
    text = f"{len(out)} cells: error {found['mare']:.2%}, bias {found['bias']:+.2%}"
    if found["coverage"] is None:
        return [*out, f"{text}, no intervals"]
    held = (
        f"{level:.0%} interval of the law covers {found['coverage']:.0%}, that of one run {found['run_coverage']:.0%}"
    )
    return [*out, f"{text}; {held}"]


def _prediction(one: Mapping[str, Any], level: float) -> str:
    at = ", ".join(f"{name}={value:g}" for name, value in one["at"].items())
    if "refused" in one:
        return f"{at}: refused, {one['refused']}"
    far = f"{one['decades']:.2f} decades outside the rows"
    if one["lo"] is None:
        return f"{at}: {one['value']:.6g}, interval not identified, {far}"
    run = f"one run [{one['run_lo']:.5g}, {one['run_hi']:.5g}]"
    return f"{at}: {one['value']:.6g}   {level:.0%} [{one['lo']:.5g}, {one['hi']:.5g}], {run}, {far}"
