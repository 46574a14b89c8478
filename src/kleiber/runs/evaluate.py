"""`kleiber eval`: opens a run or a Hugging Face folder, runs evaluations on it by name, and writes their results.

An evaluation is a choice of the config group `evals`. The results of a run go to RUN/evals, with figures beside them if
the extra `report` is installed, and its scores to the metrics in summary.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter
from pathlib import Path

from kleiber.config.check import check_node
from kleiber.config.compose import Composer, list_choices, resolve_config
from kleiber.config.errors import did_you_mean
from kleiber.config.stages import quantity
from kleiber.evals.measure import (
    Measurement,
    build_evaluations,
    plan_measurements,
    save_results,
    to_json,
)
from kleiber.records.evaluations import (
    add_scores,
    missing_evaluations,
    score_lines,
    settings_of,
    settings_of_run,
    updated_settings,
)
from kleiber.records.figures import write_figure
from kleiber.records.files import write_json, write_text
from kleiber.records.locks import locked
from kleiber.records.regular_files import make_folder
from kleiber.records.summary_file import read_summary
from kleiber.records.terminal import print_line
from kleiber.runs.evaluation_subject import open_subject
from kleiber.runs.open import find_stage
from kleiber.types import Config, Json

SCHEMA = "kleiber.eval/1"
SUMMARY_KEYS = 25  # of the W&B run of an evaluation
SCORE_COLUMNS = ("score", "value", "lo", "hi", "n", "unit", "better")  # of its table
MOST_ROWS = 40  # of a table that is not folded on the page


def parse_names(text: str) -> list[str]:
    """Splits the value of --evals, such as `a,b`. Raises ValueError when a name is not an evaluation."""
    names, available = [name.strip() for name in text.split(",") if name.strip()], list_choices("evals")
    if not names:
        raise ValueError(f"--evals {text!r} must name at least one evaluation of: {', '.join(available)}")
    for name in names:
        if name not in available:
            near = did_you_mean(name, available)
            raise ValueError(f"--evals {name} must be an evaluation.{near} Available: {', '.join(available)}")
    return names


def compose_evaluations(names: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Json]:
    """Returns configs of evaluations by name, with the keys that `overrides` set, such as evals.perplexity.stride=64.

    Raises ConfigError for a key or value that an evaluation does not have.
    """
    config = Composer("train").compose([f"evals=[{','.join(names)}]", *overrides])
    nodes = resolve_config(config)[0]["evals"]
    for name, node in nodes.items():
        check_node(f"evals.{name}", node)
    return nodes


def run_evaluations(
    path: Path,
    evals: str,
    data: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tokens: str | None = None,
    limit: int | None = None,
    stage: str | None = None,
    json: Path | None = None,
    report: Path | None = None,
    device: str | None = None,
) -> Json:
    """Runs evaluations one after another, writes their results, and returns them in the form of `kleiber eval --json`.

    The arguments are the options of the command `kleiber eval`; `overrides` set keys of the evaluations. Raises
    ValueError for options that do not fit together.
    """
    names, began = parse_names(evals), time.perf_counter()
    for option, file in (("--json", json), ("--report", report)):
        if file is not None and not file.absolute().parent.is_dir():
            raise ValueError(f"{option} {file} must be in an existing folder: create {file.absolute().parent}")
    nodes = compose_evaluations(names, overrides)
    evaluations = build_evaluations(nodes)
    subject, validation_sets, named = open_subject(
        path, stage, data, None if tokens is None else round(quantity(tokens)), device
    )
    subject = replace(subject, limit=limit)
    measurements = plan_measurements(evaluations, subject.model, subject.tokenizer, validation_sets, named)
    make_home = None
    if subject.folder:
        make_home = partial(make_folder, subject.folder, "evals")
    elif json:
        make_home = partial(make_folder, json.parent)
    results: dict[str, Json] = {}
    for measurement in measurements:
        measured = measurement.measure(subject)
        results[measurement.name] = to_json(measured)
        if subject.folder is not None:
            settings = settings_of(nodes[measurement.name], subject.tokens, limit, data)
            of_stage = find_stage_name(path, stage)
            by_data = updated_settings(subject.folder, of_stage, measurement.name, measured.scores, settings)
            save_results(subject.folder, measurement.name, measured, by_data)
        if make_home is not None:
            draw_figures(measurement, results[measurement.name], subject.folder, make_home())
    scores = {name: result["scores"] for name, result in results.items()}
    record = {"schema": SCHEMA, "subject": str(path), "evals": scores}
    record["seconds"] = round(time.perf_counter() - began, 3)
    if json is not None:
        write_json(json, record)
    if subject.folder is not None:
        with locked(subject.folder):
            add_scores(subject.folder, find_stage_name(path, stage), flat_scores(scores))
    if report is not None:
        write_report(report, measurements, results, record, subject.folder)
    return record


def find_stage_name(path: Path, stage: str | None) -> str:
    """The stage of RUN or RUN/STAGE that an evaluation reads."""
    return find_stage(path if stage is None else path / stage)[1]


def flat_scores(scores: Mapping[str, Json]) -> Json:
    """The scores by their key in summary.json, eval/<name>/<data>/<metric>."""
    return {
        f"eval/{name}/{data}/{metric}": score
        for name, by_data in scores.items()
        for data, by_metric in by_data.items()
        for metric, score in by_metric.items()
    }


def first_scores(scores: Mapping[str, Json]) -> dict[str, float]:
    """At most SUMMARY_KEYS values by key: the first metric of each evaluation and data set before the second ones."""
    ranked = [
        (place, f"eval/{name}/{data}/{metric}", score["value"])
        for name, by_data in scores.items()
        for data, by_metric in by_data.items()
        for place, (metric, score) in enumerate(by_metric.items())
    ]
    ranked.sort(key=itemgetter(0))
    return {key: value for _, key, value in ranked[:SUMMARY_KEYS]}


def log_to_wandb(folder: Path, record: Json) -> None:
    """Logs the results of a run to W&B, as a run of the job type eval in the group and project of the run.

    The summary has `first_scores`, and the table `scores` all of them with their intervals. A later evaluation adds
    its numbers to the same W&B run.
    """
    from kleiber.records.folder import read_config
    from kleiber.records.wandb_run import address, log_table, node_of, start_run, use_run, was_online

    config, summary = read_config(folder), read_summary(folder) or {}
    node = node_of(config)
    run = start_run(
        folder, f"eval-{summary['run_id']}", f"{folder.absolute().name} (eval)", config["name"], "eval",
        online=was_online(folder), project=node.get("project") or "kleiber", entity=node.get("entity"),
        tags=node.get("tags"), config={"run": summary["run_id"], "overrides": summary["overrides"]},
    )  # fmt: skip
    print_line(f"W&B {address(run)}")
    use_run(run, folder.absolute().name, summary["run_id"])
    rows = [{"score": key, **score} for key, score in flat_scores(record["evals"]).items()]
    log_table(run, "scores", SCORE_COLUMNS, rows)
    run.summary.update(first_scores(record["evals"]))
    run.finish()


def draw_figures(measurement: Measurement, results: Json, folder: Path | None, home: Path) -> None:
    """Draws the figures of an evaluation into `home`/figures, if it has any and the extra `report` is installed.

    folder  of the run; None for a Hugging Face model
    """
    try:
        charts = measurement.evaluation.figures(results, folder)
    except ImportError as error:
        print_line(f"no figures: {error.name} is not installed (pip install 'kleiber[report]')", err=True)
        return
    if not charts:
        return
    figures = make_folder(home, "figures")
    for title, chart in charts.items():
        write_figure(chart, figures, title)


def write_report(
    path: Path, measurements: Sequence[Measurement], results: Mapping[str, Json], record: Json, folder: Path | None
) -> None:
    """Writes the results as one HTML page: a table of scores, the figures, and the page of each evaluation.

    Raises ValueError without the extra `report`.
    """
    try:
        from kleiber.charts.page import render_page

        charts = {
            f"{measurement.name}/{title}": chart
            for measurement in measurements
            for title, chart in measurement.evaluation.figures(results[measurement.name], folder).items()
        }
        pages = {
            measurement.name: measurement.evaluation.page(results[measurement.name]) for measurement in measurements
        }
        tables = {name: score_rows(by_data) for name, by_data in record["evals"].items()}
        page = render_page(
            f"Evaluations of {record['subject']}",
            charts,
            notes=["Intervals are at 90 %."],
            tables={name: rows for name, rows in tables.items() if len(rows) <= MOST_ROWS},
            details={f"{name}: scores": rows for name, rows in tables.items() if len(rows) > MOST_ROWS},
            sections={name: html for name, html in pages.items() if html},
        )
    except ImportError as error:
        raise ValueError(f"--report needs {error.name}: pip install 'kleiber[report]'") from None
    write_text(path, page)


def score_rows(by_data: Mapping[str, Json]) -> list[Json]:
    """Rows of a table with the scores of each data set."""
    return [
        {
            "score": score["label"],
            "value": score["value"],
            "from": score["lo"],
            "to": score["hi"],
            "n": score["n"],
            "unit": score["unit"],
            "better": "" if score["better"] == "none" else score["better"],
        }
        for by_metric in by_data.values()
        for score in by_metric.values()
    ]


def result_lines(record: Json) -> list[str]:
    """Returns the lines that `kleiber eval` prints: a table of the scores on each data set."""
    return [
        line
        for name, by_data in record["evals"].items()
        for data, by_metric in by_data.items()
        for line in score_lines(f"{name}/{data}", by_metric)
    ]


def complete_evaluations(folder: Path, config: Config) -> None:
    """Evaluates the last stage of a finished run that lacks some of the evaluations of `config`, or their settings."""
    missing = missing_evaluations(folder, config)
    if not missing:
        return
    tokens = config["eval"]["tokens"]
    subject, validation_sets, _ = open_subject(folder, None, (), None if tokens is None else round(quantity(tokens)))
    evaluations = build_evaluations({name: config["evals"][name] for name in missing})
    stage = find_stage_name(folder, None)
    for measurement in plan_measurements(evaluations, subject.model, subject.tokenizer, validation_sets):
        results = measurement.measure_or_warn(subject)
        if results is not None:
            replaced = tuple(f"eval/{measurement.name}/{data}/" for data in results.scores)
            add_scores(folder, stage, flat_scores({measurement.name: to_json(results)["scores"]}), replaced)
            settings = settings_of_run(config, measurement.name)
            save_results(folder, measurement.name, results, dict.fromkeys(results.scores, settings))
