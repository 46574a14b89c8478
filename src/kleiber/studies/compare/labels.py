"""Labels and units of measures, and names of arms, as sentences, tables and figures show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kleiber.config.labels import readable
from kleiber.config.model_size import width_of
from kleiber.types import Row
from kleiber.types.score import Score

if TYPE_CHECKING:
    from kleiber.records.catalog import Run

LOSS = "loss"
VALIDATION_LOSS = "validation loss (nats per token)"  # the label of its axis


def arm_labels(runs: Sequence[Run], arm_of: Callable[[Run], str | None]) -> dict[str, str]:
    """Returns what figures call each arm that has runs.

    Where the name of an arm ends in the width of its model, such as moe_96, every arm of one width is called by its
    width: `mixture of experts, width 96`.
    """
    widths: dict[str, set[int | None]] = {}
    for run in runs:
        arm, model = arm_of(run), run.config.get("model") or {}
        if arm is not None:
            widths.setdefault(arm, set()).add(width_of(model) if model.get("width") or model.get("aspect") else None)
    width = {arm: each.pop() if len(each) == 1 else None for arm, each in widths.items()}
    if not any(arm.endswith(f"_{width[arm]}") for arm in width):
        return {arm: readable(arm) for arm in width}
    stems = {arm: readable(arm.removesuffix(f"_{size}")) for arm, size in width.items()}
    return {arm: stems[arm] if size is None else f"{stems[arm]}, width {size}" for arm, size in width.items()}


def with_labels(rows: Sequence[Row], labels: Mapping[str, str]) -> list[Row]:
    """Returns rows with the labels of their arms in the columns arm and against."""
    return [{**row, **{key: labels[row[key]] for key in ("arm", "against") if key in row}} for row in rows]


def text_labels(runs: Sequence[Run]) -> dict[str, str]:
    """Returns what figures call the texts of data.path that one data.config chooses: `domains (law)` for domains."""
    configs: dict[str, set[str]] = {}
    for run in runs:
        data = run.config.get("data") or {}
        for task in run.stage.get("tasks") or ():
            if data.get("path") and data.get("config") and not data.get("name"):
                configs.setdefault(task, set()).add(data["config"])
    return {task: f"{readable(task)} ({each.pop()})" for task, each in configs.items() if len(each) == 1}


def arm_from_text(kind: str, text: str) -> str:
    """The name of an arm that is a kind of model, pre-trained on one of several texts."""
    return f"{kind} from {text}"


def label_of(measure: Score) -> str:
    """What sentences call a measure, such as `accuracy on SST-2`."""
    return measure.label


def unit_of(measure: Score) -> str:
    """The unit of a measure; "" for a plain number."""
    return measure.unit


def axis_label(measure: Score) -> str:
    """The label of an axis: what the measure is called, with its unit."""
    label = f"validation {LOSS}" if measure.label == LOSS else measure.label
    return f"{label} ({measure.unit})" if measure.unit and measure.unit not in label else label
