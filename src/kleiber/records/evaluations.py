"""The scores of evaluations in summary.json, as eval/<name>/<data>/<metric> among the metrics of a stage.

RUN/evals/<name>.json has the settings with which the data sets of the run's own evaluation were measured last, whether
by the run or by `kleiber eval`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from kleiber.config.errors import Status
from kleiber.config.stages import quantity
from kleiber.records.files import read_json, write_json
from kleiber.records.folder import status, without_nulls
from kleiber.records.regular_files import DamagedFile
from kleiber.records.summary_file import SUMMARY, read_summary
from kleiber.types import Config, Json
from kleiber.types.score import format_interval

LEVEL = 0.9  # of the intervals of scores
MOST = 12  # scores of an evaluation in the closing table of a run


def add_scores(folder: Path, stage: str, scores: Json, replaced: tuple[str, ...] = ()) -> None:
    """Adds scores to those of a finished stage in summary.json, where there is such a file.

    scores    as JSON (`kleiber.types.score.Score.to_json`), by key
    replaced  prefixes of earlier scores that are removed, such as eval/perplexity/docs/
    """
    added = {"metrics": {key: score["value"] for key, score in scores.items()}, "scores": scores}
    values = read_summary(folder)
    if values is None:
        return
    for record in values["stages"]:
        if record["name"] == stage:
            for name, entries in added.items():
                earlier = record.get(name) or {}
                kept = {key: value for key, value in earlier.items() if not key.startswith(replaced)}
                record[name] = {**kept, **entries}
    write_json(folder / SUMMARY, values)


def is_complete(folder: Path, config: Config) -> bool:
    """Whether a run is finished and has the scores of all evaluations that `config` asks for."""
    return status(folder) == Status.FINISHED and not missing_evaluations(folder, config)


def missing_evaluations(folder: Path, config: Config) -> list[str]:
    """Names of the evaluations of a config of which a run's last stage has no scores, or scores with other settings.

    The evaluations of a run are no part of its identity, so a run with others is the same run.
    """
    names = [name for name, node in (config.get("evals") or {}).items() if node is not None]
    stages = (read_summary(folder) or {}).get("stages")
    metrics = stages[-1]["metrics"] if stages else {}
    return [
        name
        for name in names
        if not any(key.startswith(f"eval/{name}/") for key in metrics) or _has_other_settings(folder, name, config)
    ]


def settings_of(node: Config | None, tokens: int | None, limit: int | None = None, data: Iterable[str] = ()) -> Json:
    """What determines the results of an evaluation of a model.

    node    its config
    tokens  target tokens to score per data set; None leaves the number to the evaluation
    limit   rows to score of each table; None for all
    data    names or paths of the data sets that a command line chose
    """
    return {"evaluation": node, "tokens": tokens, "limit": limit, "data": [*data]}


def settings_of_run(config: Config, name: str) -> Json:
    """The settings with which a run with this config evaluates itself."""
    tokens = config["eval"]["tokens"]
    return settings_of(config["evals"][name], None if tokens is None else round(quantity(tokens)))


def updated_settings(folder: Path, stage: str, name: str, measured: Iterable[str], settings: Json) -> Json:
    """The settings of the data sets of a run's own evaluation, after `kleiber eval` has measured a stage on some data.

    Those of another stage than the last stay as they are, because the scores of the run are those of its last stage.
    """
    recorded, stages = _recorded_settings(folder, name) or {}, (read_summary(folder) or {}).get("stages")
    if not stages or stages[-1]["name"] != stage:
        return recorded
    return {**recorded, **{data: settings for data in measured if data in recorded}}


def _recorded_settings(folder: Path, name: str) -> Json | None:
    """The settings by data set; None where they were not recorded."""
    try:
        settings = read_json(folder / "evals" / f"{name}.json").get("settings")
    except DamagedFile:
        return None
    return settings if isinstance(settings, dict) else None


def _has_other_settings(folder: Path, name: str, config: Config) -> bool:
    """Whether a run was not evaluated with the settings of `config` on each data set of its own evaluation, or on none.

    Results without recorded settings count as those of `config`.
    """
    recorded = _recorded_settings(folder, name)
    if recorded is None:
        return False
    settings = without_nulls(settings_of_run(config, name))
    return not recorded or any(each != settings for each in without_nulls(recorded).values())


def score_lines(title: str, scores: Mapping[str, Json], most: int | None = None) -> list[str]:
    """Returns the lines of a table of scores by metric, with their intervals.

    most  rows that are shown; None: all
    """
    rows = [_score_row(metric, score) for metric, score in scores.items()]
    shown = rows if most is None else rows[:most]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [f"{title}, {LEVEL:.0%} intervals"]
    for metric, value, interval, unit in shown:
        cells = (f"{metric:<{widths[0]}}", f"{value:>{widths[1]}}", f"{interval:<{widths[2]}}", unit)
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return lines + [f"  and {len(rows) - len(shown)} more in {SUMMARY}"] * (len(shown) < len(rows))


def _score_row(metric: str, score: Json) -> tuple[str, str, str, str]:
    """Returns the cells of a score: its metric, value, interval, and unit with the number of items."""
    interval = "" if score["lo"] is None else format_interval(score["lo"], score["hi"], ".4g")
    items = "" if score["n"] is None else f"n={score['n']:,}"
    value = "-" if score["value"] is None else f"{score['value']:.4g}"
    return metric, value, interval, ", ".join(filter(None, [score.get("unit") or "", items]))


def evaluation_lines(stage: Json) -> list[str]:
    """Returns the lines with the scores of a stage by the evaluations in its config, at most MOST of each."""
    by_name: dict[str, dict[str, Json]] = {}
    for key, score in (stage.get("scores") or {}).items():
        prefix, _, rest = key.partition("/")
        if prefix == "eval":
            name, _, metric = rest.partition("/")
            by_name.setdefault(name, {})[metric] = score
    return [line for name, scores in by_name.items() for line in score_lines(name, scores, MOST)]
