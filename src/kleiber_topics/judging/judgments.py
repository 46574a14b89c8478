"""Judgments of pairs of answers in a JSONL file, and what they say: win rate and agreement between judges.

A row has the columns prompt, chosen and rejected, and so is a pair of `data=preference` and two labeled answers of
`data=unpaired`. Without a preference, chosen and rejected are empty, and the pair is left out of `data=preference`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from kleiber.records import LONGEST, load_json, open_to_append, print_line, read_bytes, wait_for_lock, write_text
from kleiber.types import Json, Template

Choice = Literal["left", "right", "tie", "both bad"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
MAX_BYTES = 2**27  # of a file of judgments
LEVEL = 0.9
Z = 1.6448536269514722  # its quantile of the normal distribution
RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """A prompt with two answers.

    item         number of the prompt
    template     whether the models were given the prompt in the template of a conversation or as plain text
    left, right  the answers as they are shown
    left_model, right_model  names of the models that gave them, which are not shown
    """

    item: int
    prompt: str
    left: str
    right: str
    left_model: str
    right_model: str
    template: Template = "plain"


@dataclass(frozen=True)
class Judgment:
    """What a judge says of a comparison.

    seconds  from showing the pair to the choice
    """

    comparison: Comparison
    choice: Choice
    judge: str
    seconds: float | None = None

    def to_json(self) -> Json:
        """The row of the file."""
        shown = self.comparison
        chosen, rejected = {
            "left": (shown.left, shown.right), "right": (shown.right, shown.left)
        }.get(self.choice, ("", ""))  # fmt: skip
        values = asdict(shown)
        return {
            "item": values.pop("item"), "prompt": values.pop("prompt"), "chosen": chosen, "rejected": rejected,
            "choice": self.choice, "judge": self.judge, "seconds": self.seconds, **values,
        }  # fmt: skip

    @property
    def key(self) -> tuple[str, int]:
        """Who judged which item."""
        return self.judge, self.comparison.item

    def score(self, model: str) -> float:
        """1 where this model's answer is preferred, 0 where the other one is, and 1/2 where neither is."""
        preferred = {"left": self.comparison.left_model, "right": self.comparison.right_model}.get(self.choice)
        return 0.5 if preferred is None else float(preferred == model)

    @property
    def value(self) -> str:
        """Which model is preferred, or why neither is: the same whatever side a model was shown on."""
        sides = {"left": self.comparison.left_model, "right": self.comparison.right_model}
        return sides.get(self.choice, self.choice)


def read_judgments(path: Path) -> list[Judgment]:
    """The judgments of a file, in order; none where there is no file. A last line that was cut is left out.

    Raises ValueError, with the number of the line, for a row that is no judgment.
    """
    if not path.is_file():
        return []
    judgments = []
    lines = read_bytes(path, MAX_BYTES).split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == len(lines) and not line.endswith(b"}")):
            continue
        try:
            judgments.append(parse_judgment(line.decode()))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no judgment of kleiber judge: {error}") from None
    return judgments


def parse_judgment(line: str) -> Judgment:
    """The judgment of a row.

    Raises KeyError without a column, and ValueError for another choice than CHOICES or a value of another type.
    """
    row = load_json(line)
    if not isinstance(row, dict):
        raise ValueError("it must be an object")
    texts = ("prompt", "left", "right", "left_model", "right_model", "template", "judge")
    wrong = [name for name in texts if not isinstance(row[name], str)]
    wrong += [] if type(row["item"]) is int else ["item"]
    wrong += [] if isinstance(row["seconds"], int | float | None) else ["seconds"]
    if wrong:
        raise ValueError(f"{wrong[0]}={str(row[wrong[0]])[:LONGEST]} has another type")
    if row["choice"] not in CHOICES:
        raise ValueError(f"choice={row['choice']!r} must be one of {', '.join(CHOICES)}")
    names = Comparison.__dataclass_fields__
    return Judgment(Comparison(**{name: row[name] for name in names}), row["choice"], row["judge"], row["seconds"])


@contextmanager
def judgments_locked(path: Path) -> Iterator[None]:
    """Waits until no other process changes a file of judgments, or answers for it, and locks it within the context.

    The lock is a file of its own, because the file of judgments is replaced where a judgment is removed.
    """

    def waiting() -> None:
        print_line(f"waiting for another process that writes {path}", err=True)

    with wait_for_lock(path.with_name(f".{path.name}.lock"), waiting):
        yield


def append_judgments(path: Path, judgments: Sequence[Judgment]) -> None:
    """Adds rows to the file, in place of a last line that was cut; none that its judge has given already.

    So every comparison has one row of each judge, however many processes judge for one file.
    """
    with judgments_locked(path):
        judged = {judgment.key for judgment in read_judgments(path)}
        new = [judgment for judgment in judgments if judgment.key not in judged]
        with open_to_append(path) as file:
            file.seek(0)
            rows = file.read()
            last = rows[rows.rfind(b"\n") + 1 :]
            if last.endswith(b"}"):
                file.write(b"\n")
            else:
                file.truncate(len(rows) - len(last))
            lines = [json.dumps(judgment.to_json(), ensure_ascii=False) + "\n" for judgment in new]
            file.write("".join(lines).encode())
            file.flush()


def remove_last(path: Path, judge: str, items: Collection[int]) -> Judgment | None:
    """Removes the last judgment of a judge on one of these items from the file, and returns it; None without any."""
    with judgments_locked(path):
        judgments = read_judgments(path)
        places = [i for i, j in enumerate(judgments) if j.judge == judge and j.comparison.item in items]
        if not places:
            return None
        removed = judgments.pop(places[-1])
        write_judgments(path, judgments)
        return removed


def write_judgments(path: Path, judgments: Sequence[Judgment]) -> None:
    """Replaces the rows of the file, at once."""
    write_text(path, "".join(json.dumps(judgment.to_json(), ensure_ascii=False) + "\n" for judgment in judgments))


@dataclass(frozen=True)
class Estimate:
    """A number with its 90 % interval; n is the number of prompts that it is from."""

    value: float
    lo: float
    hi: float
    n: int


def win_rate(judgments: Sequence[Judgment], model: str) -> Estimate | None:
    """Share of the prompts on which a model's answer is preferred; a tie counts 1/2. None without judgments.

    Prompts count equally, however many judges judged them. The interval is Wilson's (1927) with the number of prompts,
    and so is wider than necessary where there are ties.
    """
    by_item: dict[int, list[float]] = {}
    for judgment in judgments:
        by_item.setdefault(judgment.comparison.item, []).append(judgment.score(model))
    if not by_item:
        return None
    count = len(by_item)
    share = sum(sum(scores) / len(scores) for scores in by_item.values()) / count
    return Estimate(share, *wilson_interval(share, count), count)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` items, at 90 %."""
    denominator = 1 + Z**2 / count
    middle = (share + Z**2 / (2 * count)) / denominator
    half = Z / denominator * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def krippendorff_alpha(units: Sequence[Sequence[object]]) -> float:
    """Krippendorff's alpha for nominal values: 1 for perfect agreement, 0 for that of chance.

    units  the values that judges gave each item, any number of them; items with fewer than two are left out

    alpha = 1 - D_o / D_e with D_o the disagreement within units and D_e that between any two values (Krippendorff 2011,
    "Computing Krippendorff's alpha-reliability"). It is nan where there are no two values to compare, or all are equal.
    """
    values = sorted({str(value) for unit in units for value in unit})
    counts = np.array([[sum(str(v) == value for v in unit) for value in values] for unit in units if len(unit) > 1])
    return float(_alpha(counts.reshape(1, -1, max(1, len(values))))[0])


def _alpha(counts: np.ndarray) -> np.ndarray:
    """Alpha of each sample from the number of judges who gave each value, of shape (samples, units, values)."""
    judges = counts.sum(-1)
    agreeing = (counts * (counts - 1)).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        observed = judges.sum(-1) - np.where(judges > 1, agreeing / np.maximum(judges - 1, 1), 0).sum(-1)
        totals = counts.sum(1)
        n = totals.sum(-1)
        expected = (n**2 - (totals**2).sum(-1)) / (n - 1)
        return 1 - observed / expected


def agreement(judgments: Sequence[Judgment]) -> Estimate | None:
    """Krippendorff's alpha between judges, with a percentile bootstrap interval over items.

    A value is the model that is preferred, a tie or both bad. A later judgment of a judge replaces an earlier one. None
    where no item has two judges, and where all judgments are the same, so that agreement by chance is complete.
    """
    by_item: dict[int, dict[str, str]] = {}
    for judgment in judgments:
        by_item.setdefault(judgment.comparison.item, {})[judgment.judge] = judgment.value
    units = [list(of_judges.values()) for of_judges in by_item.values() if len(of_judges) > 1]
    alpha = krippendorff_alpha(units)
    if math.isnan(alpha):
        return None
    names = sorted({value for unit in units for value in unit})
    counts = np.array([[unit.count(name) for name in names] for unit in units])
    random = np.random.default_rng(0)
    drawn = np.concatenate([_alpha(counts[random.integers(len(units), size=(100, len(units)))]) for _ in range(20)])
    lo, hi = np.quantile(np.nan_to_num(drawn, nan=1.0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])  # equal values agree
    return Estimate(alpha, float(lo), float(hi), len(units))
