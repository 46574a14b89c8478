"""The table of a panel: a row for each run, measure and value of the keys that a measure's name contains.

Keys come from the config (`data.steps`), from the stage (`stage.params.total`), or from the name of a measure: the
pattern `eval/attribution/*/deletion_gain/{method}` has a row for each method.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from kleiber.config.nested import flatten
from kleiber.records.catalog import Run
from kleiber.studies.compare.decision import Estimate
from kleiber.studies.compare.places import refuse_twin_rows
from kleiber.studies.compare.rows import Rows, is_fine_tuned, outcomes
from kleiber.types import Json

STAGE, START, FORGETTING = "stage.", "start:", "forgetting:"


@dataclass(frozen=True)
class Measure:
    """A measure of a panel.

    sources  patterns of names of metrics: the first of which a run has a metric counts. `start:NAME` is the metric
             before the first step of the last stage, `forgetting:F` and `forgetting:target` are those of fine-tuning
    label    what people call it
    unit     of its values
    better   which values are better: lower, higher or none
    limits   ends of its scale, at which intervals are cut
    """

    name: str
    sources: Sequence[str]
    label: str
    unit: str
    better: str
    limits: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """Returns the label with the unit, as on an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def within(self, mean: Estimate | None) -> Estimate | None:
        """Returns a mean of the measure with its interval cut at the ends of the scale."""
        return mean if mean is None or self.limits is None else mean.within(*self.limits)


@dataclass(frozen=True)
class Key:
    """A key of a panel.

    source   where its values are: a key of the config, or of the stage, with the prefix `stage.`; None: in the names of
             measures
    default  the value of runs that have none; runs without a value and a default are left out
    labels   what people call its values
    title    what people call the key
    """

    name: str
    source: str | None
    default: object = None
    labels: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def label(self, value: object) -> str:
        """Returns what people call a value."""
        number = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        return self.labels.get(str(value), number)


def texts(value: object, key: str) -> list[str]:
    """Returns the texts of a text or of a list of them; empty for None. Raises ValueError, which names `key`."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        return [*value]
    raise ValueError(f"{key}={value} must be a text or a list of texts")


def mapping(value: object, key: str) -> dict[str, object]:
    """Returns a mapping as one with texts as keys; empty for None. Raises ValueError, which names `key`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}={value} must have the form {{KEY: VALUE}}")
    return {str(name): item for name, item in value.items()}


def read_keys(nodes: Mapping[str, object], captured: Sequence[str]) -> list[Key]:
    """Returns the keys of a panel's config; those that only names of measures contain come last.

    Raises ValueError for a node that is neither a text nor has the keys of `Key`.
    """
    keys = []
    for name, value in nodes.items():
        place = f"study.keys.{name}"
        node = {"source": value} if isinstance(value, str) else mapping(value, place)
        unknown = [key for key in node if key not in ("source", "default", "labels", "title")]
        if unknown:
            raise ValueError(f"{place} does not have the key {unknown[0]}: it may have source, default, labels, title")
        labels = {label: str(text) for label, text in mapping(node.get("labels"), f"{place}.labels").items()}
        source = node.get("source")
        keys.append(
            Key(
                name,
                None if source is None else str(source),
                node.get("default"),
                labels,
                str(node.get("title") or name),
            )
        )
    declared = {key.name for key in keys}
    return [*keys, *(Key(name, None, title=name) for name in captured if name not in declared)]


def pattern_of(source: str) -> re.Pattern[str]:
    """Returns the expression of a pattern: `{name}` stands for a key's value, `*` for one part or more of a name."""
    parts = re.split(r"(\{\w+\}|\*)", source)
    texts = [
        ".+" if part == "*" else f"(?P<{part[1:-1]}>[^/]+)" if part[:1] == "{" else re.escape(part) for part in parts
    ]
    return re.compile("".join(texts))


def read_measures(nodes: Mapping[str, object]) -> list[Measure]:
    """Returns the measures of a panel's config. Raises ValueError for a node without a source, or with other keys."""
    measures = []
    for name, value in nodes.items():
        place = f"study.measures.{name}"
        node = mapping(value, place) if isinstance(value, Mapping) else {"source": value}
        unknown = [key for key in node if key not in ("source", "label", "unit", "better", "limits")]
        sources, limits = texts(node.get("source"), f"{place}.source"), node.get("limits")
        if unknown or not sources:
            what = f"does not have the key {unknown[0]}" if unknown else "needs the name of a metric, its source"
            raise ValueError(f"{place} {what}: it has source, and may have label, unit, better, limits")
        ends = [float(str(end)) for end in limits] if isinstance(limits, Sequence) else None
        measures.append(
            Measure(
                name, sources, label=str(node.get("label") or name.replace("_", " ")), unit=str(node.get("unit") or ""),
                better=str(node.get("better") or "none"),
                limits=None if ends is None else (ends[0], ends[1]),
            )
        )  # fmt: skip
    return measures


def captured_keys(measures: Sequence[Measure]) -> list[str]:
    """Returns the keys that names of measures contain, in order."""
    texts = [text for measure in measures for text in measure.sources]
    return list(dict.fromkeys(name for text in texts for name in re.findall(r"\{(\w+)\}", text)))


def read_table(runs: Sequence[Run], keys: Sequence[Key], measures: Sequence[Measure]) -> Rows:
    """Returns the table of a panel: run, seed, lr, base, a column for each key, measure and value.

    Raises ValueError where no finished run has a measure, and where two runs have the same place.
    """
    finished = [run for run in runs if run.finished]
    places = {run.name: place for run in finished if (place := place_of(run, keys)) is not None}
    placed = [run for run in finished if run.name in places]
    sources = [text for measure in measures for text in measure.sources]
    forgotten = fine_tuned(placed) if any(text.startswith(FORGETTING) for text in sources) else {}
    rows = [
        {**places[run.name], **row} for run in placed for row in measured(run, measures, forgotten.get(run.name, {}))
    ]
    if not rows:
        raise ValueError(
            f"none of these {len(runs)} runs has finished with a metric that study.measures names: {', '.join(sources)}"
        )
    columns = ["run", "seed", "lr", "tokens", "base", *(key.name for key in keys), "measure", "value"]
    table = pd.DataFrame(rows, columns=columns)
    refuse_twin_rows(table, [*(key.name for key in keys if key.source), "seed"], runs)
    return table


def place_of(run: Run, keys: Sequence[Key]) -> Json | None:
    """Returns the columns of a run that its measures share; None where it lacks a key."""
    config, stage = flatten(run.config), flatten(run.stage)
    place = {"run": run.name, "seed": run.config["seed"], "lr": run.stage.get("lr"), "tokens": run.stage.get("tokens")}
    place["base"] = str((run.config.get("init") or {}).get("path") or "")
    for key in (key for key in keys if key.source is not None):
        source = str(key.source)
        value = stage.get(source[len(STAGE) :]) if source.startswith(STAGE) else config.get(source)
        place[key.name] = key.default if value is None else value
        if place[key.name] is None:
            return None
    return place


def fine_tuned(runs: Sequence[Run]) -> dict[str, Mapping[str, float]]:
    """Returns forgetting F and the target loss of each run that started from another one's weights, by name."""
    if not any(is_fine_tuned(run) for run in runs):
        return {}
    table: Rows = outcomes(runs)
    return {str(row["run"]): {"F": row["F"], "target": row["target"]} for _, row in table.iterrows()}


def measured(run: Run, measures: Sequence[Measure], forgotten: Mapping[str, float]) -> Iterator[Json]:
    """Yields a row for each value of each measure that the run has."""
    before = {f"{START}{name}": value for name, value in (run.stage.get("start_metrics") or {}).items()}
    after = {f"{FORGETTING}{name}": value for name, value in forgotten.items() if not math.isnan(value)}
    scores = {**run.metrics, **before, **after}
    for measure in measures:
        for text in measure.sources:
            pattern = pattern_of(text)
            matches = [(pattern.fullmatch(name), value) for name, value in scores.items() if value is not None]
            rows = [(match.groupdict(), float(value)) for match, value in matches if match is not None]
            for parts, value in rows:
                keys = {name: number_or_text(part) for name, part in parts.items()}
                yield {**keys, "measure": measure.name, "value": value}
            if rows:
                break


def number_or_text(text: str) -> int | float | str:
    """Returns the number that a part of a name is, else the part."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
