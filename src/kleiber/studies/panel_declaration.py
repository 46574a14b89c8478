"""What a panel declares: its keys, measures and tables, read from the config with errors that name the key.

The name of a metric may be a pattern: `eval/attribution/**/deletion_gain/{method}` has a row for each method.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from hydra.utils import get_object

from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.extensions import import_function
from kleiber.config.targets import signature
from kleiber.records.catalog import Run
from kleiber.studies.claims import Selection
from kleiber.studies.compare.rows import Rows
from kleiber.studies.decision import Estimate
from kleiber.types.score import Score

RESERVED = ("run", "seed", "base", "measure", "metric", "value")  # columns of the table, which no key may be called
EVERY = "*"  # in labels and values of a key: all other values
PART = re.compile(r"(\[|\]|\{\w+(?::path)?\}|\*\*|\*)")  # what is no plain text in a pattern
CONTRAST = ("of", "against", "than", "each")  # keys of a claim that a table of differences has
MEANS = ("where", "noise")  # keys of a table of means
EXAMPLE = "kleiber.studies.loss_lines"


@dataclass(frozen=True)
class Measure:
    """A measure of a panel.

    sources    patterns of names of metrics, see `pattern_of`: the first of which a run has a metric counts; none for a
               measure that a function computes from the others. `start:NAME` is the metric before the first step of the
               last stage, `forgetting:F` and `forgetting:target` are the rise of the loss on earlier tasks by
               fine-tuning and the loss on the new one
    minus      a metric that is subtracted, whose name may contain the keys and stars of the sources; "" for none
    label      what people call it; "": as the runs recorded it
    unit       of its values; "": as the runs recorded it
    better     which values are better: lower, higher or none; "": as the runs recorded it
    items      pattern of the metric whose recorded interval over items is that of the measure's difference from another
               group on the same items; claims and contrasts add its error to that of the samples. "" for none
    limits     ends of its scale, at which intervals are cut
    reference  a value to compare with, such as chance: a number, or the pattern of metrics whose mean it is
    called     what people call the reference
    """

    name: str
    sources: Sequence[str]
    label: str
    unit: str
    better: str
    minus: str = ""
    items: str = ""
    limits: tuple[float, float] | None = None
    reference: float | str | None = None
    called: str = ""

    @property
    def title(self) -> str:
        """The label with the unit, as on an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def as_recorded(self, score: Score) -> Measure:
        """Returns the measure with label, unit and direction of a score of the runs, unless it states its own."""
        label, unit, better = self.label or score.label, self.unit or score.unit, self.better or score.better
        return replace(self, label=label, unit=unit, better=better)

    def within(self, mean: Estimate | None) -> Estimate | None:
        """Returns a mean of the measure with its interval cut at the ends of the scale."""
        return mean if mean is None or self.limits is None else mean.within(*self.limits)


@dataclass(frozen=True)
class Key:
    """A key of a panel.

    sources  where its values are: keys of the config, or of the last stage with the prefix `stage.`, the first of which
             a run has counts; none: in the names of metrics
    values   what stands for some values of the source: {kleiber.nn.FullAttention: full}; EVERY: for all others
    default  the value of runs, or of metrics, that have none; without it they are left out
    labels   what people call values, by value; EVERY is a template for the others, such as `{:.0%} wrong`
    title    what people call the key
    """

    name: str
    sources: Sequence[str] = ()
    values: Mapping[str, object] = field(default_factory=dict)
    default: object = None
    labels: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def label(self, value: object, short: bool = False) -> str:
        """Returns what people call a value.

        short  writes large numbers with a suffix, such as 59.6k, as figures do
        """
        if isinstance(value, list):
            return " or ".join(self.label(item, short) for item in value)
        text = self.labels.get(str(value))
        if text is not None:
            return text
        template = self.labels.get(EVERY, "{}")
        return template.format(value if "{:" in template else number_text(value, short))


def number_text(value: object, short: bool) -> str:
    """Returns a value as text; a number with commas, or short, with a suffix."""
    from kleiber.charts.theme import format_count

    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return format_count(value) if short and value >= 1000 else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def read_function(name: str) -> Callable[[Rows, Sequence[Run]], Rows]:
    """Imports the function of `study.derive`, one of kleiber's studies or of an extension.

    Raises ConfigError for a name that a config may not use, and for what is no function of a table and runs.
    """
    if name.startswith("kleiber."):
        signature(name)
    function = get_object(name) if name.startswith("kleiber.") else import_function(name, f"study.derive={name}")
    if not inspect.isfunction(function) or [*inspect.signature(function).parameters] != ["table", "runs"]:
        raise ConfigError(f"study.derive={name} must be a function of `table` and `runs`, such as {EXAMPLE}")
    return function


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


def entries(value: object, key: str, allowed: Sequence[str]) -> dict[str, object]:
    """Returns a mapping whose keys are allowed. Raises ValueError, which names `key`, for another one."""
    node = mapping(value, key)
    for name in node:
        if name not in allowed:
            raise ValueError(
                f"{key}.{name} is not a key of a panel.{did_you_mean(name, allowed)} Keys: {', '.join(allowed)}"
            )
    return node


def refuse_unknown(place: str, names: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises ValueError, which names the key, for a name that is not allowed."""
    unknown = [name for name in names if name not in allowed]
    if unknown:
        near = did_you_mean(unknown[0], allowed)
        raise ValueError(f"{place}: {unknown[0]} must be one of {', '.join(allowed)}.{near}")


def read_keys(nodes: Mapping[str, object], captured: Sequence[str], sources: bool = True) -> list[Key]:
    """Returns the keys of a panel's config; those that only the names of metrics contain come last.

    sources  whether each that is not captured needs a source: a function may set further ones

    Raises ValueError for a node that is neither a text nor has the keys of `Key`, or that no metric's name contains.
    """
    keys = []
    for name, value in nodes.items():
        place = f"study.keys.{name}"
        if name in RESERVED:
            raise ValueError(f"{place} must have another name: the table of a panel has a column {name} already")
        node = {"source": value} if isinstance(value, str | list) else value
        node = entries(node, place, ("source", "values", "default", "labels", "title"))
        labels = node.get("labels")
        labels = {EVERY: labels} if isinstance(labels, str) else mapping(labels, f"{place}.labels")
        places = texts(node.get("source"), f"{place}.source")
        if sources and not places and name not in captured:
            raise ValueError(
                f"{place} needs a source, such as study.arm or stage.params.total, or a measure whose name contains "
                f"{{{name}}}"
            )
        keys.append(
            Key(
                str(name), places, mapping(node.get("values"), f"{place}.values"), node.get("default"),
                {value: str(text) for value, text in labels.items()}, str(node.get("title") or name),
            )
        )  # fmt: skip
    declared = {key.name for key in keys}
    return [*keys, *(Key(name, title=name) for name in captured if name not in declared)]


def read_measures(nodes: Mapping[str, object], sources: bool = True) -> list[Measure]:
    """Returns the measures of a panel's config.

    sources  whether each needs a source: a function may compute further ones

    Raises ValueError for a node without a source that needs one, or with other keys.
    """
    measures = []
    for name, value in nodes.items():
        place = f"study.measures.{name}"
        node = value if isinstance(value, Mapping) else {"source": value}
        node = entries(node, place, ("source", "minus", "items", "label", "unit", "better", "limits", "reference"))
        patterns = texts(node.get("source"), f"{place}.source")
        if sources and not patterns:
            raise ValueError(f"{place} needs a source, the name of a metric, such as val/builtin/docs/loss")
        if node.get("better", "none") not in ("lower", "higher", "none"):
            raise ValueError(f"{place}.better={node['better']} must be lower, higher or none")
        reference, called = read_reference(node.get("reference"), f"{place}.reference")
        measures.append(
            Measure(
                name, patterns, minus=str(node.get("minus") or ""), unit=str(node.get("unit") or ""),
                items=read_items(node.get("items"), patterns, f"{place}.items"),
                label=str(node.get("label") or ""), better=str(node.get("better") or ""),
                limits=read_limits(node.get("limits"), f"{place}.limits"), reference=reference, called=called,
            )
        )  # fmt: skip
    return measures


def read_reference(value: object, key: str) -> tuple[float | str | None, str]:
    """Returns the reference of a measure, and what people call it. Raises ValueError, which names `key`."""
    node = entries(value if value is None or isinstance(value, Mapping) else {"at": value}, key, ("at", "label"))
    at, called = node.get("at"), str(node.get("label") or "")
    if not node:
        return None, ""
    if isinstance(at, int | float):
        return float(at), called
    if isinstance(at, str):
        return at, called
    raise ValueError(f"{key}={value} must be a number, the name of a metric, or {{at: ..., label: TEXT}}")


def read_items(value: object, sources: Sequence[str], key: str) -> str:
    """Returns the pattern of `items`. Raises ValueError, which names `key`, for a key that the sources lack."""
    pattern = str(value or "")
    refuse_unknown(key, keys_in(pattern), [name for source in sources for name in keys_in(source)])
    pattern_of(pattern)
    return pattern


def read_limits(value: object, key: str) -> tuple[float, float] | None:
    """Returns the ends of a scale. Raises ValueError, which names `key`, unless they are two numbers."""
    if value is None:
        return None
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(end, int | float) for end in value):
        return float(value[0]), float(value[1])
    raise ValueError(f"{key}={value} must be two numbers, [LEAST, MOST]")


def captured_keys(measures: Sequence[Measure]) -> list[str]:
    """Returns the keys that the names of metrics contain, in order."""
    names = [name for measure in measures for source in measure.sources for name in keys_in(source)]
    return list(dict.fromkeys(names))


def keys_in(source: str) -> list[str]:
    """Returns the keys that a pattern contains."""
    return [part.strip("{}").removesuffix(":path") for part in PART.findall(source) if part[0] == "{"]


@cache
def pattern_of(source: str) -> re.Pattern[str]:
    """Returns the expression of a pattern of names of metrics.

    {name}       a part of the name between slashes, the value of a key
    {name:path}  one part or more
    *            one part, which is not kept
    **           one part or more, such as the name of a data set
    [...]        may be absent; then a key in it has its default
    """
    stars = 0
    texts = []
    for part in PART.split(source):
        if part in ("*", "**"):
            texts.append(f"(?P<_{stars}>{'[^/]+' if part == '*' else '.+'})")
            stars += 1
        elif part in ("[", "]"):
            texts.append("(?:" if part == "[" else ")?")
        elif part.startswith("{"):
            name, _, kind = part.strip("{}").partition(":")
            texts.append(f"(?P<{name}>{'.+?' if kind else '[^/]+'})")
        else:
            texts.append(re.escape(part))
    try:
        return re.compile("".join(texts))
    except re.error as error:
        raise ValueError(f"{source} is not a valid pattern of a metric's name: {error}") from None


def filled(pattern: str, parts: Mapping[str, str | None]) -> str:
    """Returns the name of a metric: a pattern with the values of its keys, and of its stars in order."""
    stars = iter(sorted(name for name in parts if name.startswith("_")))
    texts = []
    for part in PART.split(pattern):
        name = (
            next(stars, "")
            if part in ("*", "**")
            else part.strip("{}").removesuffix(":path")
            if part[:1] == "{"
            else None
        )
        texts.append(part if name is None else str(parts.get(name)))
    return "".join(texts)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A declared table of means or of differences.

    place     of its node in the config, such as study.means[0], for messages
    measures  of its rows
    by        keys whose combinations of levels have a row each
    where     values of further keys
    contrast  of, against, than and each of a claim, for a table of differences
    pooled    keys: the intervals pool the noise of seeds over all cells with the same values of these, over all cells
              of the table where it is empty; None: each cell has its own noise
    joint     whether the intervals of a measure hold together over all of its rows (Bonferroni)
    """

    title: str
    measures: Sequence[str]
    place: str = ""
    by: Sequence[str] = ()
    where: Selection = field(default_factory=dict)
    contrast: Selection = field(default_factory=dict)
    pooled: Sequence[str] | None = None
    joint: bool = False


def read_tables(
    nodes: Sequence[Mapping[str, object]], key: str, measures: Sequence[str], further: Sequence[str]
) -> list[Table]:
    """Returns the tables of config nodes, which may have the `further` keys.

    Raises ValueError, which names the key, for one that is invalid.
    """
    tables = []
    for at, node in enumerate(nodes):
        place = f"{key}[{at}]"
        entry = entries(node, place, ("title", "measures", "by", "joint", *further))
        if "title" not in entry:
            raise ValueError(f"{place} needs a title")
        chosen = texts(entry.get("measures"), f"{place}.measures") or [*measures]
        refuse_unknown(f"{place}.measures", chosen, measures)
        noise, by = entry.get("noise", "own"), texts(entry.get("by"), f"{place}.by")
        if isinstance(noise, str) and noise not in ("own", "pooled"):
            raise ValueError(f"{place}.noise={noise} must be own, pooled, or a list of the keys of its rows")
        pooled = {"own": None, "pooled": []}[noise] if isinstance(noise, str) else texts(noise, f"{place}.noise")
        refuse_unknown(f"{place}.noise", pooled or [], by)
        tables.append(
            Table(
                title=str(entry["title"]), measures=chosen, place=place, by=by,
                where=mapping(entry.get("where"), f"{place}.where"), pooled=pooled,
                joint=bool(entry.get("joint")), contrast={name: entry[name] for name in CONTRAST if name in entry},
            )
        )  # fmt: skip
    return tables
