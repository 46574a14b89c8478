"""The report of a study: laws.json, findings.json, figures, one HTML page that needs no network, and a W&B run.

A report can be made at any time: it analyzes the finished runs and lists the others. The HTML page contains the scripts
that draw its charts. The W&B run has the job type `study` and the group of the sweep; it is online if any of the runs
was.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.cost import describe_total
from kleiber.config.errors import ConfigError, listed
from kleiber.config.nested import flatten
from kleiber.records import archive
from kleiber.records.catalog import Run, archive_runs, frame, read_runs
from kleiber.records.completeness import incomplete_runs_named
from kleiber.records.figures import write_figure
from kleiber.records.files import read_config_node, write_json, write_text
from kleiber.records.progress import activity
from kleiber.records.regular_files import make_folder
from kleiber.records.terminal import print_line
from kleiber.records.wandb_run import address, log_table, node_of, start_run, use_run, was_online
from kleiber.studies.compare.rows import Rows
from kleiber.studies.decision import Decision
from kleiber.studies.laws.laws_json import without_nonfinite, write
from kleiber.studies.overview import Overview
from kleiber.studies.statements import sentence_of
from kleiber.studies.study import Findings, Study, content
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run as WandbRun

    from kleiber.charts.theme import Chart

MOST_OPEN = 3  # claims that are not decided, which the terminal states beside the answer
LONGEST_NAME = 60  # characters of the name of a claim in W&B
FILES = ("findings.json", "report.html", archive.NAME)  # of the artifact, beside laws.json


def log_to_wandb(
    folder: Path, findings: Json, result: Findings, charts: Mapping[str, Chart], runs: Sequence[Run]
) -> list[str]:
    """Logs the study to W&B as one run; a later report continues the same run.

    Returns the parts that could not be logged, each with the reason. A failed part does not stop the others.
    """
    failures: list[str] = []
    try:
        run = start_wandb_run(folder, runs)
    except Exception as error:  # W&B raises classes of its own, of pydantic's and of the network's
        return [f"the study: {reason(error)}"]
    print_line(f"W&B {address(run)}")
    steps = parts(run, folder, findings, result, charts, runs)
    for part, log in steps.items():
        try:
            log()
        except Exception as error:
            failures.append(f"{part}: {reason(error)}")
    return failures


def start_wandb_run(folder: Path, runs: Sequence[Run]) -> WandbRun:
    """Starts or resumes the W&B run of the study, in the project of its runs, with the config that they share."""
    nodes = [node_of(run.config) for run in runs]
    name, config = folder.absolute().name, common_config(runs)
    kind = str(config.get("study._target_") or "overview").rpartition(".")[2].lower()
    tags = dict.fromkeys(["study", kind, *(tag for node in nodes for tag in node.get("tags") or ())])
    run = start_run(
        folder, f"study-{name}", f"{name} (study)", name, "study", online=any(was_online(run.folder) for run in runs),
        project=next((node["project"] for node in nodes if node.get("project")), "kleiber"),
        entity=next((node["entity"] for node in nodes if node.get("entity")), None), tags=list(tags), config=config,
    )  # fmt: skip
    run.define_metric("*", summary="none")  # of figures and tables
    return run


def common_config(runs: Sequence[Run]) -> Json:
    """Returns the keys of the config that have the same value in all runs."""
    first, *others = [flatten(run.config) for run in runs]
    return {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}


def claim_summary(claims: Sequence[Json]) -> Json:
    """Returns difference, interval and decision of each claim by claims/NAME/...; the name is that of its arms."""
    summary = Json()
    for claim in claims:
        sides = [" ".join(map(str, side.values())) for side in (claim["of"], claim["against"]) if side]
        text = " - ".join(sides) if len(sides) > 1 else claim["text"]
        name, number = re.sub(r"[^A-Za-z0-9._+-]+", "_", text)[:LONGEST_NAME].strip("_"), 2
        while f"claims/{name}/decision" in summary:
            name, number = f"{name.removesuffix(f'_{number - 1}')}_{number}", number + 1
        values = {"difference": claim["value"], "low": claim["lo"], "high": claim["hi"], "decision": claim["decision"]}
        summary |= {f"claims/{name}/{key}": value for key, value in values.items()}
    return summary


def parts(
    run: WandbRun, folder: Path, findings: Json, result: Findings, charts: Mapping[str, Chart], runs: Sequence[Run]
) -> dict[str, Callable[[], None]]:
    """Returns the functions that log the parts of a study, by name and in order; the last one finishes the run.

    All panels are logged at the same step.
    """
    answer = {name: findings[name] for name in ("question", "answer", "decision", "runs")}
    steps: dict[str, Callable[[], None]] = {
        "answer": partial(run.summary.update, {**answer, **claim_summary(findings["claims"])}),
        "runs": partial(use_runs, run, runs),
        "report": partial(send_page, run, folder / "report.html"),
    }
    for name in charts:
        steps[f"figure {name}"] = partial(send_image, run, f"figures/{name}", folder / "figures" / f"{name}.png")
    for title, rows in findings["tables"].items():
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            steps[f"table {title}"] = partial(log_table, run, f"tables/{title}", columns, rows)
    columns = ["decision", "verdict", "advice", "n", "level"]
    steps["claims"] = partial(log_table, run, "claims", columns, findings["claims"])
    steps["verdicts"] = partial(log_table, run, "verdicts", ["level", "code", "text"], findings["verdicts"])
    laws = ["laws.json"] if result.law is not None else []
    files = [folder / name for name in (*laws, *FILES) if (folder / name).exists()]
    steps["artifact"] = partial(send_artifact, run, f"{folder.absolute().name}-study", files)
    steps["end of the run"] = run.finish
    return steps


def use_runs(run: WandbRun, runs: Sequence[Run]) -> None:
    """Records the runs that the study reads."""
    for source in runs:
        if run_id := source.summary.get("run_id"):
            use_run(run, source.name, run_id)


def send_page(run: WandbRun, file: Path) -> None:
    import wandb

    run.log({"report": wandb.Html(str(file), inject=False)}, commit=False)


def send_image(run: WandbRun, key: str, file: Path) -> None:
    import wandb

    run.log({key: wandb.Image(str(file))}, commit=False)


def send_artifact(run: WandbRun, name: str, files: Sequence[Path]) -> None:
    """Logs files as one W&B artifact of type `study`."""
    import wandb

    artifact = wandb.Artifact(name, type="study")
    for file in files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)


def reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def study_of(folder: Path, runs: Sequence[Run], name: str | None = None) -> Study:
    """Returns the study to analyze the runs with: `name`, else study.yaml of the folder, else that of a run.

    Runs without a study are shown side by side (`Overview`). Raises ConfigError for an invalid option in a file, and
    where a file names another class.
    """
    from kleiber.config.check import check_node
    from kleiber.config.compose import read_choice
    from kleiber.config.foreign import check_foreign
    from kleiber.config.targets import build, class_attribute

    nodes = {str(run.folder / "config.yaml"): run.config["study"] for run in runs if run.config.get("study")}
    place = folder / "study.yaml"
    if name is not None:
        nodes = {f"--study {name}": read_choice("study", name)["study"]}
    elif os.path.lexists(place):
        nodes = {str(place): read_config_node(place)}
    if not nodes:
        return Overview()
    source, node = next(iter(nodes.items()))
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"{source}: study must have a _target_, the class of a study")
    check_node("study", node)
    if name is None:
        check_foreign({"study": node}, Path(source))
    target = str(node["_target_"])
    study = None if class_attribute(target, "is_study") is None else build(node)  # no other class is even imported
    if not isinstance(study, Study):
        raise ConfigError(f"{source}: study._target_={target} must be the class of a study")
    return study


def report(
    source: Path, out: Path | None = None, name: str | None = None, also: Sequence[Path] = (), mirror: bool = False
) -> Json:
    """Analyzes runs, writes laws.json, findings.json, figures/ and report.html; returns the content of findings.json.

    source  a folder of runs, or a runs.jsonl.gz; all files are written into the folder, or next to the archive
    out     writes only the HTML page, to this path
    name    the study with which to analyze the runs, in place of the one in their config
    also    more folders or archives whose runs are analyzed together with those of `source`
    mirror  also logs the report to W&B; findings.json lists the parts that could not be logged

    Raises ValueError for `out` together with `mirror`, and if the study cannot analyze the runs.
    """
    if out is not None and mirror:
        raise ValueError(
            f"--out {out} writes only the page, but --wandb logs all files of the report; remove one of the two options"
        )
    folder = folder_of(source)
    if source.is_dir() and out is None:
        archive_runs(source)
    with activity(f"reading the runs in {source}"):
        runs = [run for place in (source, *also) for run in read_runs(place)]
    if not runs:
        raise ValueError(f"{source} contains no run: neither a folder with a config.yaml nor a {archive.NAME}")
    study = study_of(folder, runs, name)
    with activity(f"analyzing {len(runs)} runs"), incomplete_runs_named(runs):
        result = study.analyze(runs)
    findings = without_nonfinite(content(result, title_of(source), runs, study.level))
    if out is None:
        write_findings(folder, findings, result)
    with incomplete_runs_named(runs):
        charts = {name: make() for name, make in result.figures.items()}
    with activity("writing the page"):
        write_text(out or folder / "report.html", page(findings, result, charts, run_rows(runs)))
    if out is not None:
        return findings
    write_figures(folder / "figures", charts)
    if mirror:
        with activity("logging the report to W&B"):
            findings["not_mirrored"] = log_to_wandb(folder, findings, result, charts, runs)
        write_json(folder / "findings.json", findings)
    return findings


def closing_lines(findings: Json, page: Path) -> list[str]:
    """Returns the lines that the command prints after it has written the report to `page`."""
    missing = f"; not finished: {listed(findings['missing'], most=5)}" if findings["missing"] else ""
    lines = [findings["answer"], *open_claims(findings), f"{findings['runs']}{missing}", f"report: {page}"]
    return [*lines, *(f"not logged to W&B: {part}" for part in findings.get("not_mirrored", ()))]


def open_claims(findings: Json) -> list[str]:
    """Returns the claims that are not decided and not in the answer, since the exit code tells of them, too."""
    unsettled = [
        claim for claim in findings["claims"] if claim["decision"] in (Decision.UNDECIDED, Decision.NOT_TESTED)
    ]
    rest = [claim for claim in unsettled if claim["verdict"] not in findings["answer"]]
    lines = [sentence_of(claim) for claim in rest[:MOST_OPEN]]
    further = len(rest) - len(lines)
    return [*lines, f"Not decided: {further} more, in the report."] if further else lines


def folder_of(source: Path) -> Path:
    """Returns the folder for the report of a folder of runs, or of a runs.jsonl.gz."""
    return source if source.is_dir() else source.parent


def title_of(source: Path) -> str:
    """Returns the title of the report: the name of the study's folder, or of an archive not named runs.jsonl.gz."""
    place = source.absolute()
    if place.is_dir() or place.name == archive.NAME:
        return place.name if place.is_dir() else place.parent.name
    return place.name.removesuffix(".gz").removesuffix(".jsonl")


def write_findings(folder: Path, findings: Json, result: Findings) -> None:
    """Writes findings.json, and laws.json if the study fits a law."""
    if result.law is not None:
        write(result.law, folder / "laws.json")
    write_json(folder / "findings.json", findings)


def write_figures(folder: Path, charts: Mapping[str, Chart]) -> None:
    """Writes every chart as PNG and SVG, after removing such pairs of an earlier report; other files stay."""
    make_folder(folder.parent, folder.name)
    for picture in folder.glob("*.png"):
        if picture.with_suffix(".svg").is_file():
            picture.unlink()
            picture.with_suffix(".svg").unlink()
    with activity("drawing figures", len(charts), "figures") as work:
        for name, chart in work.track(charts.items()):
            write_figure(chart, folder, name)


def page(
    findings: Json, result: Findings, charts: Mapping[str, Chart], rows: Sequence[Row],
    pictures: Mapping[str, str] | None = None, home: str = "",
) -> str:  # fmt: skip
    """Returns the HTML page: the content of findings.json, text and methods of `result`, and a table of the runs.

    pictures, home  those of `render_page`
    """
    from kleiber.charts.page import render_page

    took = f", {findings['seconds'] / 60:.0f} minutes of training in total" if findings.get("seconds") else ""
    took += f", {describe_total(findings['cost'])}" if findings.get("cost") else ""
    missing = [f"Not finished: {listed(findings['missing'])}"] if findings["missing"] else []
    caveats = [{"level": "warn", "text": caveat["text"]} for caveat in findings["caveats"]]
    return render_page(
        findings["study"], charts, question=findings["question"], answer=findings["answer"],
        notes=[f"{findings['runs']}{took}.", *missing, *level_notes(findings)],
        verdicts=[*findings["verdicts"], *caveats], tables={"Claims": claim_rows(findings), **findings["tables"]},
        text="\n".join(result.text), methods=result.methods, pictures=pictures, home=home,
        details={} if "Runs" in findings["tables"] else {"Runs": rows},
    )  # fmt: skip


def claim_rows(findings: Json) -> list[Json]:
    """Returns the table of the claims: decision, verdict, and what would decide those that are not decided."""
    columns = {"decision": "decision", "verdict": "result", "advice": "what would decide it"}
    return [{title: claim[name] for name, title in columns.items()} for claim in findings["claims"]]


def level_notes(findings: Json) -> list[str]:
    """Returns which confidence level the intervals of a report have; empty for a study without intervals."""
    if findings["level"] is None:
        return []
    level = f"{findings['level']:.0%}"
    claims = f"Intervals of claims hold together at {level}; those of tables" if findings["claims"] else "Intervals"
    return [f"{claims} have a confidence of {level} each, unless a row or heading names another level."]


def run_rows(runs: Sequence[Run]) -> list[Json]:
    """Returns a table row for the end of each run or branch: loss, rate and seed, size, tokens and FLOPs."""
    rows: Rows = frame(runs)
    kept = ["loss", "lr", "seed", "run", "stage", "status", "params", "active", "tokens", "flops"]
    return rows[[name for name in kept if name in rows]].to_dict("records")
