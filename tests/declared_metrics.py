"""What the classes of kleiber declare of a key of summary.json, as a run would record it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from yaml import safe_load

from kleiber import objectives
from kleiber.config.compose import find_choice
from kleiber.config.labels import data_label
from kleiber.evals import drift
from kleiber.evals.contamination import CONTAMINATION
from kleiber.evals.evaluation import Evaluation
from kleiber.evals.task_scores import BITS_PER_BYTE
from kleiber.training.callbacks.stability import METRICS as STABILITY
from kleiber.types.score import Metrics, Score, described, find_metric

EPSILON = Score(0.0, better="lower", label="privacy loss ε")


@cache
def evaluation_class(name: str) -> type[Evaluation]:
    """The class of a choice of the config group evals. Raises KeyError for another name."""
    file = find_choice("evals", name)
    if file is None:
        raise KeyError(name)
    package, _, of = safe_load(file.read_text(encoding="utf-8"))["_target_"].rpartition(".")
    return getattr(import_module(package), of)


def objective_metrics(name: str) -> Metrics:
    """The metrics of an objective, by the name of its class in lower case."""
    found = next((each for each in objectives.EXPORTS if each.lower() == name), "CLM")
    return {**BITS_PER_BYTE, **getattr(objectives, found).metrics}


def split_key(rest: str, metrics: Metrics, data: Sequence[str] = ()) -> tuple[str, str]:
    """Data and metric of DATA/METRIC, both of which may have slashes: the longest metric that is declared.

    data  names of data that have slashes and end like the first part of a metric
    """
    parts = rest.split("/")
    starts = sorted(range(1, len(parts)), key=lambda start: "/".join(parts[:start]) not in data)
    for start in starts:
        if find_metric(metrics, "/".join(parts[start:])) is not None:
            return "/".join(parts[:start]), "/".join(parts[start:])
    raise KeyError(rest)


def declared(
    key: str, value: float | None, objective: str = "clm", labels: Callable[[str], str] = data_label
) -> dict[str, Any]:
    """The score of a key as summary.json has it. Raises KeyError for one that no class declares."""
    return {**declared_score(key, objective, labels).to_json(), "value": value}


@cache
def declared_score(key: str, objective: str, labels: Callable[[str], str]) -> Score:
    """The score of a key, of no value. Raises KeyError for one that no class declares."""
    kind, _, rest = key.partition("/")
    score = Score(0.0)
    if kind == "eval":
        name, _, rest = rest.partition("/")
        of = evaluation_class(name)
        metrics: Metrics = {**CONTAMINATION, **of.metrics}
        data, metric = split_key(rest, metrics, of.default_data)
        score = described(score, metrics, metric, f"on {of.data_labels.get(data) or labels(data)}")
    elif kind in ("val", "val_ema", "wise"):
        alpha, _, rest = rest.partition("/") if kind == "wise" else ("", "", rest)
        weights = "" if kind == "val" else f", {data_label(f'{kind}/{alpha}' if alpha else kind)}"
        metrics = objective_metrics(objective)
        data, metric = split_key(rest, metrics)
        score = described(score, metrics, metric, f"on {labels(data)}{weights}")
    elif kind == "drift" and rest != "weights":
        data, metric = split_key(rest, drift.METRICS)
        score = described(score, drift.METRICS, metric, f"on {data_label(data)}")
    elif key == "privacy/epsilon":
        score = EPSILON
    else:
        groups: Mapping[str, Metrics] = {"drift": drift.METRICS, "stability": STABILITY}
        if find_metric(groups.get(kind, {}), rest) is None:
            raise KeyError(key)
        score = described(score, groups[kind], rest)
    return score
