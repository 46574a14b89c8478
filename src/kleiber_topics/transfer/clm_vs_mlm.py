"""The study `clm_vs_mlm`: scaling of causal and masked language modeling.

The two losses are of different tasks, so their levels are not compared, only their local exponents, d log L / d log N
and d log L / d log D, with intervals that include the noise between trunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.config import readable
from kleiber.records import Run
from kleiber.studies import (
    Array,
    Claim,
    Estimate,
    Findings,
    IntervalStudy,
    PlannedPoint,
    Question,
    Rows,
    answer_text,
    as_row,
    decide_together,
    estimate_around,
    finished_rows,
    not_ready,
    seed_means,
    student_quantile,
    trunk_noise,
)
from kleiber.types import Json, NonNegative

NAMES = ("N", "D")
LEAST = 5  # points of an objective whose exponents are told


@dataclass(frozen=True)
class ClmVsMlm(IntervalStudy):
    """Exponents of the losses of two objectives; `min_tokens` is the least D that enters."""

    min_tokens: NonNegative = 0

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Objectives without points enough for an exponent. Raises ValueError where none has them."""
        late: dict[str, set[tuple[float, float, int]]] = {}
        for point in points:
            if 0.999 * self.min_tokens <= point.D:
                kind = str(point.config["objective"]["_target_"]).rpartition(".")[2].lower()
                late.setdefault(kind, set()).add((point.N, point.D, point.config["seed"]))
        reasons = {kind: too_few(*list(zip(*rows, strict=True))[:2]) for kind, rows in sorted(late.items())}
        few = [f"{kind}: {reason}" for kind, reason in reasons.items() if reason]
        if len(few) == len(late):
            raise ValueError("; ".join(few) or f"study.min_tokens={self.min_tokens} leaves no point")
        return few

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the local exponents of the losses of both objectives in parameters and tokens."""
        rows = finished_rows(runs)
        kinds = {run.name: run.stage["objective"] for run in runs if run.stage}
        rows = rows.assign(objective=[kinds[name] for name in rows["run"]])
        rows = pd.DataFrame(rows[rows["tokens"] >= 0.999 * self.min_tokens])
        slopes = [row for kind, part in rows.groupby("objective") for row in exponents(str(kind), part, self.level)]
        apart = [(a, b) for a, b in combinations(slopes, 2) if a["along"] == b["along"]]
        waiting = not_ready(runs, 1, lambda run: run.stage.get("objective")).why
        claims = decide_together([question(rows, *pair, waiting) for pair in apart], self.level)
        caveats = []
        if len({row["objective"] for row in slopes}) < 2:
            text = f"Only {', '.join(sorted(rows['objective'].unique()))} has enough points: no comparison yet."
            caveats.append({"code": "missing", "text": text})
        gaps = [
            {"along": other["along"], **as_row(exponent_difference(rows, first, other, self.level))}
            for first, other in apart
        ]
        tables = {"Local exponents": slopes, "Difference of the exponents, second objective minus first": gaps}
        stated = [answer_text("", claims, self.level)] if claims else []
        answer = " ".join([*stated, *(caveat["text"] for caveat in caveats)])
        return Findings(
            answer, QUESTION, claims=claims, caveats=caveats, tables=tables, figures=figures(rows), methods=METHODS
        )


QUESTION = "Do masked and causal language modeling gain as much from parameters and tokens?"
METHODS = (
    "The same Transformer was trained causally on next tokens and, reading both ways, on masked tokens (Devlin et al. "
    "2018, arXiv:1810.04805), as trunks with cooldowns (Hägele et al. 2024, arXiv:2405.18392) at the same widths, "
    "tokens, batches and learning rates. log L was regressed on log N and log D for each objective by generalized "
    "least squares with the noise that branches of a trunk share. Levels of the two losses are not comparable and are "
    "not compared."
)


def too_few(N: Iterable[float], D: Iterable[float]) -> str:
    """Why points do not determine the exponents of an objective; "" where they do."""
    points, sizes, tokens = len(list(N)), len(set(N)), len(set(D))
    if points >= LEAST and sizes > 1 and tokens > 1:
        return ""
    return (
        f"{points} points of {sizes} sizes and {tokens} numbers of tokens, where exponents need {LEAST} points of 2 "
        "sizes and 2 numbers of tokens"
    )


def exponents(kind: str, rows: Rows, level: float) -> list[Json]:
    """-d log L / d log N and -d log L / d log D with intervals; empty with fewer than `LEAST` points."""
    N, D, loss = (rows[name].to_numpy(dtype=float) for name in ("active", "tokens", "loss"))
    _, trunk = np.unique(rows["trunk"].astype(str), return_inverse=True)
    if too_few(N, D):
        return []
    design = np.column_stack([np.ones(len(N)), np.log(N), np.log(D)])
    noise = trunk_noise({"N": N, "D": D}, loss, trunk)
    share = noise.correlation if noise else 0.5  # one seed a size measures nothing: half, as the designs assume
    value, covariance, spare = generalized(design, np.log(loss), trunk, share)
    half = student_quantile(spare, level) * np.sqrt(np.diag(covariance))
    return [
        {"objective": kind, "along": name, "exponent": -float(value[j]), "lo": -float(value[j] + half[j]),
         "hi": -float(value[j] - half[j]), "points": len(N), "trunks": int(trunk.max() + 1)}
        for j, name in enumerate(NAMES, 1)
    ]  # fmt: skip


def generalized(design: Array, y: Array, trunk: NDArray[np.intp], share: float) -> tuple[Array, Array, int]:
    """Generalized least squares with correlation `share` within trunks: estimates, covariance, degrees of freedom.

    Degrees are of trunks where they are fewer than rows: a trunk is one sample, not one a branch.
    """
    matrix = (1 - share) * np.eye(len(y)) + share * (trunk[:, None] == trunk[None])
    inverse = np.linalg.inv(matrix)
    information = design.T @ inverse @ design
    value = np.linalg.solve(information, design.T @ inverse @ y)
    rest = y - design @ value
    spare = max(1, min(len(y), len(np.unique(trunk)) + 1) - design.shape[1])
    variance = float(rest @ inverse @ rest) / max(1, len(y) - design.shape[1])
    return value, variance * np.linalg.inv(information), spare


def exponent_difference(rows: Rows, first: Json, other: Json, level: float) -> Estimate:
    """The exponent of another objective minus that of the first, with an interval of the confidence level `level`."""
    parts = {kind: rows[rows["objective"] == kind] for kind in (first["objective"], other["objective"])}
    ends = [
        row
        for kind, part in parts.items()
        for row in exponents(str(kind), part, level)
        if row["along"] == first["along"]
    ]
    half = float(np.hypot(*((slope["hi"] - slope["lo"]) / 2 for slope in ends)))
    trunks = min(first["trunks"], other["trunks"])
    return estimate_around(other["exponent"] - first["exponent"], half, trunks, "in the exponent")


def question(rows: Rows, first: Json, other: Json, waiting: str) -> Question:
    """Returns the claim that the loss of the second objective falls more steeply; see `Question` for `waiting`."""
    of, against = ({"objective": row["objective"], "along": first["along"]} for row in (other, first))
    claim = Claim(of=of, against=against, measure="exponent", direction="higher", equal="tokens")
    text = (
        f"the loss of {other['objective']} falls more steeply with {first['along']} than that of {first['objective']}"
    )
    return Question(
        claim=claim, text=text, at=lambda level: exponent_difference(rows, first, other, level), unit="in the exponent",
        problem=waiting, method="generalized least squares with the noise that branches of a trunk share",
    )  # fmt: skip


def figures(rows: Rows) -> Json:
    """The figures of the loss vs size and vs tokens."""
    from kleiber.charts import format_count, line_chart

    longest = rows.groupby(["objective", "active"])["tokens"].transform("max")
    ends = rows[rows["tokens"] >= 0.999 * longest]
    by_size = seed_means(ends, ("objective", "active"), "loss")
    by_size = by_size.assign(objective=by_size["objective"].map(readable))
    charts = {
        "sizes": lambda: line_chart(
            by_size, "active", "parameters N", "objective", "Loss vs parameters, by objective", log=True,
            subtitle="slopes compare; levels do not", value="loss (nats per target)",
        )
    }  # fmt: skip
    for kind, part in rows.groupby("objective"):
        means = seed_means(part, ("active", "tokens"), "loss").assign(
            size=lambda t: [format_count(n) for n in t["active"]]
        )
        charts[f"tokens_{kind}"] = lambda means=means, kind=kind: line_chart(
            means, "tokens", "training tokens D", "size", f"Loss vs tokens, {readable(kind)}", every=2, log=True,
            value="loss (nats per target)",
        )  # fmt: skip
    return charts
