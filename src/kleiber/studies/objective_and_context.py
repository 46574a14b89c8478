"""The studies `clm_vs_mlm` and `context`: one family of models by its objective, and by the length of its context.

clm_vs_mlm  scaling of causal and masked language modeling. The two losses are of different tasks, so their levels are
            not compared, only their local exponents, d log L / d log N and d log L / d log D, with intervals that
            include the noise between trunks.
context     the gain of a longer context, by its length, the kind of attention and position. On text the loss falls
            slowly with position; on associative recall it falls to 0 or not at all. Raises ValueError where cells
            differ in width or budget.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import Rows, difference, format_mean, seed_means
from kleiber.studies.designs.sizes import PlannedPoint
from kleiber.studies.laws.law import Array
from kleiber.studies.laws.uncertainty import student_quantile
from kleiber.studies.laws.variance_components import trunk_noise
from kleiber.studies.study import Figures, Findings, IntervalStudy, points
from kleiber.types import Json

NAMES = ("N", "D")
LEAST = 5  # points of an objective whose exponents are told


@dataclass(frozen=True)
class ClmVsMlm(IntervalStudy):
    """Exponents of the losses of two objectives; `min_tokens` is the least D that enters."""

    min_tokens: float | int = 0

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Objectives without points enough for an exponent. Raises ValueError where none has them."""
        late: dict[str, set[tuple[float, float, int]]] = {}
        for point in points:
            if 0.999 * self.min_tokens <= point.D:
                kind = str(point.config["objective"]["_target_"]).rpartition(".")[2].lower()
                late.setdefault(kind, set()).add((point.N, point.D, point.config["seed"]))
        few = [
            f"{kind}: {len(rows)} points of {len(sizes)} sizes and {len(tokens)} numbers of tokens, where exponents "
            f"need {LEAST} points of 2 sizes and 2 numbers of tokens"
            for kind, rows in sorted(late.items())
            for sizes, tokens in [({N for N, _, _ in rows}, {D for _, D, _ in rows})]
            if len(rows) < LEAST or len(sizes) < 2 or len(tokens) < 2
        ]
        if len(few) == len(late):
            raise ValueError("; ".join(few) or f"study.min_tokens={self.min_tokens} leaves no point")
        return few

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Compares the local exponents of the losses of both objectives in parameters and tokens."""
        rows = points(runs)
        kinds = {run.name: run.stage["objective"] for run in runs if run.stage}
        rows = rows.assign(objective=[kinds[name] for name in rows["run"]])
        rows = pd.DataFrame(rows[rows["tokens"] >= 0.999 * self.min_tokens])
        slopes = [row for kind, part in rows.groupby("objective") for row in exponents(str(kind), part, self.level)]
        apart = differences(slopes)
        notes = [{"code": "exponent", "level": "note", "text": row["in words"]} for row in apart]
        if len({row["objective"] for row in slopes}) < 2:
            text = f"only {', '.join(sorted(rows['objective'].unique()))} has points enough: no comparison yet"
            notes.append({"code": "missing", "level": "warn", "text": text})
        head = "; ".join(row["in words"] for row in apart) if apart else notes[-1]["text"]
        tables = {"Local exponents": slopes, "Difference": apart}
        return Findings(
            head[0].upper() + head[1:] + ".", notes, tables, objective_figures(rows), methods=OBJECTIVE_METHODS
        )


OBJECTIVE_METHODS = (
    "The same Transformer was trained causally on next tokens and, reading both ways, on masked tokens (Devlin et al. "
    "2018, arXiv:1810.04805), as trunks with cooldowns (Hägele et al. 2024, arXiv:2405.18392) at the same widths, "
    "tokens, batches and learning rates. log L was regressed on log N and log D for each objective by generalised "
    "least squares with the noise that branches of a trunk share. Levels of the two losses are not comparable and are "
    "not compared."
)


def exponents(kind: str, rows: Rows, level: float) -> list[Json]:
    """-d log L / d log N and -d log L / d log D with intervals; empty with fewer than `LEAST` points."""
    N, D, loss = (rows[name].to_numpy(dtype=float) for name in ("active", "tokens", "loss"))
    _, trunk = np.unique(rows["trunk"].astype(str), return_inverse=True)
    if len(rows) < LEAST or len(np.unique(N)) < 2 or len(np.unique(D)) < 2:
        return []
    design = np.column_stack([np.ones(len(N)), np.log(N), np.log(D)])
    noise = trunk_noise({"N": N, "D": D}, loss, trunk)
    share = noise.correlation if noise else 0.5  # one seed a size measures nothing: half, as the designs assume
    value, covariance, spare = generalised(design, np.log(loss), trunk, share)
    half = student_quantile(spare, level) * np.sqrt(np.diag(covariance))
    return [
        {"objective": kind, "along": name, "exponent": -float(value[j]), "lo": -float(value[j] + half[j]),
         "hi": -float(value[j] - half[j]), "points": len(N), "trunks": int(trunk.max() + 1)}
        for j, name in enumerate(NAMES, 1)
    ]  # fmt: skip


def generalised(design: Array, y: Array, trunk: NDArray[np.intp], share: float) -> tuple[Array, Array, int]:
    """Generalised least squares with correlation `share` within trunks: estimates, covariance, degrees of freedom.

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


def differences(slopes: Sequence[Json]) -> list[Json]:
    """Each other objective's exponent less that of the first, in words."""
    table = []
    for along in NAMES:
        here = [slope for slope in slopes if slope["along"] == along]
        for other in here[1:]:
            gap = other["exponent"] - here[0]["exponent"]
            half = float(np.hypot(*((slope["hi"] - slope["lo"]) / 2 for slope in (other, here[0]))))
            verdict = (
                "more steeply than" if gap - half > 0 else "less steeply than" if gap + half < 0 else "within noise as"
            )
            words = f"with {along} the loss of {other['objective']} falls {verdict} that of {here[0]['objective']} "
            words += f"(exponent {other['exponent']:.3f} against {here[0]['exponent']:.3f}, difference "
            words += f"{gap:+.3f} +- {half:.3f})"
            table.append({"along": along, "difference": gap, "half": half, "in words": words})
    return table


def objective_figures(rows: Rows) -> Json:
    """The figures of the loss vs size and vs tokens."""
    from kleiber.charts import format_count, line_chart

    longest = rows.groupby(["objective", "active"])["tokens"].transform("max")
    ends = rows[rows["tokens"] >= 0.999 * longest]
    by_size = seed_means(ends, ("objective", "active"), "loss")
    charts = {
        "sizes": lambda: line_chart(
            by_size, "active", "parameters N", "objective", "Loss against size, by objective", log=True,
            subtitle="slopes compare; levels do not", value="loss (nats per target)",
        )
    }  # fmt: skip
    for kind, part in rows.groupby("objective"):
        means = seed_means(part, ("active", "tokens"), "loss").assign(
            size=lambda t: [format_count(n) for n in t["active"]]
        )
        charts[f"tokens_{kind}"] = lambda means=means, kind=kind: line_chart(
            means, "tokens", "training tokens D", "size", f"Loss against tokens: {kind}", every=2, log=True,
            value="loss (nats per target)",
        )  # fmt: skip
    return charts


KINDS = {"FullAttention": "full", "WindowAttention": "window", "NoMixing": "none"}
POSITION = re.compile(r"val/([^/]+)/position/(\d+)")


@dataclass(frozen=True)
class Context(IntervalStudy):
    """The gain of a longer context; the noise of seeds is pooled over all settings."""

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Estimates the gain of a longer context for each data set and kind of attention."""
        rows, places = scored(runs)
        same_budget(rows)
        means = seed_means(rows, ("data", "attention", "context"), "loss", self.level)
        by_place = seed_means(places, ("data", "attention", "context", "position"), "loss", self.level)
        gains = [gain for data in sorted(rows["data"].unique()) for gain in worth(means, data)]
        tables = {"Loss by context": listed(means), "What context is worth": gains}
        for data, part in by_place.groupby("data"):
            longest = part[part["context"] == part["context"].max()]
            tables[f"Loss by position, {data}, context {int(longest['context'].max())}"] = listed(longest)
        notes = [{"code": "context", "level": "note", "text": gain["in words"]} for gain in gains]
        charts = context_figures(means, by_place)
        return Findings(context_headline(gains), notes, tables, charts, methods=CONTEXT_METHODS)


CONTEXT_METHODS = (
    "Models of one width and one number of training tokens were trained at contexts of different length with full "
    "causal attention, attention to a sliding window, and none (each position reads itself alone), on text and on "
    "made-up associative recall (Arora et al. 2023, arXiv:2312.04927). Held-out loss was averaged over the positions "
    "of a row and told by position in bins that double. Intervals are t intervals of means over seeds, their noise "
    "pooled over settings."
)


def scored(runs: Sequence[Run]) -> tuple[Rows, Rows]:
    """Returns two tables: losses with a row per finished run, and with a row per run and bin of positions.

    Raises ValueError if no run has finished.
    """
    rows, places = [], []
    for run in (run for run in runs if run.status == "finished"):
        model = run.config["model"]
        kind = str(model["attention"]["_target_"]).rpartition(".")[2]
        told_of = {
            "run": run.name, "seed": run.summary.get("seed"), "attention": KINDS.get(kind, kind),
            "context": int(model["context"]), "width": model.get("width"), "tokens": run.stage.get("tokens"),
        }  # fmt: skip
        for key, value in run.metrics.items():
            if key.startswith("val/") and key.endswith("/loss"):
                rows.append({**told_of, "data": key.split("/")[1], "loss": value})
            elif match := POSITION.fullmatch(key):
                places.append({**told_of, "data": match[1], "position": int(match[2]), "loss": value})
    if not rows:
        raise ValueError("no finished run here: nothing to compare")
    columns = ["data", "attention", "context", "position", "loss"]
    return pd.DataFrame(rows), pd.DataFrame(places, columns=None if places else pd.Index(columns))


def same_budget(rows: Rows) -> None:
    """Raises ValueError where widths or training tokens differ by more than 2 %."""
    for name in ("width", "tokens"):
        values = rows[name].dropna()
        if len(values) and values.max() > 1.02 * values.min():
            raise ValueError(
                f"study=context compares runs of equal {name}, and these have {values.min():g} to {values.max():g}: "
                f"train the runs of each {name} under another name="
            )


def worth(means: Rows, data: str) -> list[Json]:
    """For each kind of attention, the loss at the shortest context less that at the longest."""
    out = []
    for kind, part in means[means["data"] == data].groupby("attention"):
        part = part.sort_values("context")
        short, long = part.iloc[0], part.iloc[-1]
        if short["context"] == long["context"]:
            continue
        gain, half = difference(short, long)
        verb = "gains" if gain >= 0 else "loses"
        words = f"{data}: {kind} attention {verb} {format_mean(abs(gain), half)} nats per token from context "
        words += f"{short['context']} to {long['context']}"
        out.append({"data": data, "attention": kind, "from": int(short["context"]), "to": int(long["context"]),
                    "gain": gain, "half": half, "in words": words})  # fmt: skip
    return out


def context_headline(gains: Sequence[Json]) -> str:
    if not gains:
        return "One length of context only: what more of it is worth cannot be said."
    first = min(gains, key=lambda gain: (gain["data"] == "recall", gain["attention"] != "full"))
    return first["in words"][0].upper() + first["in words"][1:] + "."


def listed(means: Rows) -> list[Json]:
    return means.drop(columns="half").rename(columns={"mean": "loss"}).to_dict("records")


def context_figures(means: Rows, places: Rows) -> Figures:
    """The figures of the loss vs context and vs position."""
    from kleiber.charts import line_chart

    charts: Figures = {}
    for data, part in means.groupby("data"):
        charts[f"context_{data}"] = lambda part=part, data=data: line_chart(
            part, "context", "context (tokens)", "attention", f"Loss against context: {data}", every=2
        )
    for data, part in places.groupby("data"):
        longest = part[part["context"] == part["context"].max()]
        charts[f"position_{data}"] = lambda part=longest, data=data: line_chart(
            part, "position", "position of the target (up to)", "attention",
            f"Loss by position: {data}, context {int(part['context'].max())}", every=2,
        )  # fmt: skip
    return charts
