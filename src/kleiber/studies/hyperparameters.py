"""The study `hyperparameters`: laws of the best learning rate and batch, and the critical batch, from a sweep of both.

The law of the optimum is that of `kleiber fit --law hyperparameter`. The critical batch of a size is fitted to its
losses at the best rate of each batch, from the best batch of each number of tokens on: below it, losses of Adam rise
again, which the law of the critical batch does not describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from kleiber.records.catalog import Run
from kleiber.studies import optimum_report
from kleiber.studies.designs.design import shortfall
from kleiber.studies.laws import analysis, hyperparameter_record, table
from kleiber.studies.laws.catalog import find
from kleiber.studies.laws.hyperparameters import HyperparameterLaw
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.laws_json import without_nonfinite
from kleiber.studies.laws.uncertainty import interval_ends
from kleiber.studies.study import Findings, IntervalStudy, PlannedPoint, finished_rows
from kleiber.types import Json, Natural, Positive, Row
from kleiber.types.score import format_interval

if TYPE_CHECKING:
    from kleiber.charts.theme import Chart

ROLES = {"N": "active", "D": "tokens", "L": "loss", "lr": "lr", "batch": "batch_tokens"}
DECAY = "weight_decay"  # of the optimizer, a column of the rows where it was swept
EQUAL = 0.05  # sizes and tokens that differ by less are equal, since runs of another batch end on another whole step
CRITICAL = "critical_batch"


@dataclass(frozen=True)
class Hyperparameters(IntervalStudy):
    """Fits the laws of the best learning rate, batch and weight decay to the runs, and the critical batch of each size.

    bootstrap  number of bootstrap resamples
    predict    points at which to predict the best hyperparameters, such as {N: 1e6, D: 3e7}
    """

    bootstrap: Natural = 1000
    predict: Sequence[dict[str, Positive]] = field(default_factory=tuple)

    def check_plan(self, points: Sequence[PlannedPoint]) -> list[str]:
        """Raises ValueError if no size is trained with several learning rates, and for a sweep with a decay of 0."""
        rates = {(point.N, point.config["optimizer"]["lr"]) for point in points}
        if len(rates) == len({N for N, _ in rates}):
            raise ValueError("every size has a single optimizer.lr: sweep it, such as -m optimizer.lr=0.005,0.01,0.02")
        decays = {point.config["optimizer"].get(DECAY) for point in points}
        if len(decays) > 1 and not all(decays):
            raise ValueError(
                f"optimizer.{DECAY}=0 has no place in a power law: sweep values above 0, such as 0.001,0.01,0.1"
            )
        return []

    def law_inputs(self) -> Sequence[str]:
        return ("N", "D", "lr", "batch")

    def analyze(self, runs: Sequence[Run]) -> Findings:
        """Fits the laws. Raises ValueError if the learning rate does not vary at any size and number of tokens."""
        rows, roles = with_decay(finished_rows(runs), runs)
        loaded = table.load(rows, {**roles, "C": "flops"}, (), ("N", "D", *roles.keys() & {"decay"}))
        form = find("hyperparameter")
        assert isinstance(form, HyperparameterLaw)
        options = analysis.Options(bootstrap=self.bootstrap, level=self.level, predict=self.predict)
        form, record = hyperparameter_record.analyze(loaded, form, options)
        law = without_nonfinite(record)
        frontier = best_rates(rows)
        fits = [self.critical_batches(N, frontier) for N in sorted(set(frontier["N"]))]
        critical = [row for rows, _ in fits for row in rows]
        figures = optimum_report.figures(law, form, loaded)
        if len(set(frontier["batch"])) > 1:
            figures["loss-at-best-rate"] = lambda: frontier_figure(frontier)
        return Findings(
            question="How do the best learning rate and batch depend on size and tokens?",
            answer=" ".join([optimum_report.headline(law), *([critical_text(critical)] if critical else [])]),
            verdicts=[*law["verdicts"], *(verdict for _, verdicts in fits for verdict in verdicts)],
            tables={"Optimum by size and tokens": optimum_report.table(law, form), "Critical batch": critical},
            figures=figures,
            law=law,
            text=optimum_report.lines(law),
            methods=f"{optimum_report.methods(law)} {methods()}",
        )

    def critical_batches(self, N: float, frontier: pd.DataFrame) -> tuple[list[Json], list[Json]]:
        """Returns a row for each number of tokens of a size, its critical batch with an interval; and verdicts.

        Batches whose best rate is at an edge of its grid are left out, since their losses are too high. The exponent e
        is 0 where the rows do not determine it; there are no rows where they do not determine the critical batch.

        frontier  rows of `best_rates`
        """
        rows = from_best_batch(pd.DataFrame(frontier[frontier["N"] == N]))
        kept = pd.DataFrame(rows[~rows["at_edge"]]).reset_index(drop=True)
        at_edge, law = sorted(set(rows["batch"][rows["at_edge"]])), determined_form(kept)
        verdicts = [edge_verdict(N, at_edge, determined=law is not None)] if at_edge else []
        if law is None:
            return [], verdicts
        if "e" not in law.params and len(set(kept["D"])) > 1:
            verdicts.append(fixed_verdict(N, len(set(kept["D"])), len(kept)))
        options = analysis.Options(
            bootstrap=self.bootstrap, level=self.level, cluster="batch", find_suspects=False, backtest=()
        )
        fitted = analysis.analyze_rows(kept, law, {"D": "D", "batch": "batch", "L": "loss"}, options)
        values = {name: np.array([entry["value"]]) for name, entry in fitted["params"].items()}
        draws = law.named(np.array(fitted["draws"])) if fitted["draws"] else {}
        out: list[Json] = []
        for D in sorted(kept["D"].unique().tolist()):
            row: Json = {"N": N, "D": D, "critical batch": float(critical_batch(values, D)[0])}
            ends = interval_ends(critical_batch(draws, D) if draws else np.zeros(0), self.level)
            out.append({**row, **ends, "points": len(kept), "residual rms": fitted["residual_rms"]})
        return out, verdicts


def with_decay(rows: pd.DataFrame, runs: Sequence[Run]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Returns rows of `points` and the column of each role; the weight decay is one of them where it was swept."""
    decays = {run.name: run.config["optimizer"].get(DECAY) for run in runs}
    if len(set(decays.values())) == 1:
        return rows, ROLES
    return rows.assign(**{DECAY: [decays[name] for name in rows["run"]]}), {**ROLES, "decay": DECAY}


def determined_form(rows: pd.DataFrame) -> Law | None:
    """Returns the law of the critical batch that has fewer parameters than there are rows and is determined by them.

    That is the law with its power e of the tokens or, failing that, with e = 0; None if the rows determine neither.
    """
    free = find(CRITICAL)
    inputs = {name: rows[name].to_numpy(dtype=float) for name in free.inputs}
    forms = [law for law in (free, free.fix({"e": 0.0})) if len(rows) > len(law.params) and not shortfall(law, inputs)]
    return forms[0] if forms else None


def edge_verdict(N: float, batches: Sequence[float], determined: bool) -> Json:
    """Returns a warning that names the batches of a size whose best learning rate is at an edge of its grid.

    determined  whether the other batches determine the critical batch
    """
    names = ", ".join(f"{batch:,.0f}" for batch in batches)
    text = (
        f"at N = {N:.3g} the best learning rates of batches of {names} tokens are at an edge of their grid, and these "
        "losses are left out of the critical batch"
    )
    text += f"{'' if determined else ', which the others do not determine'}: widen optimizer.lr"
    return {"code": "batch_at_edge", "level": "warn", "text": text}


def fixed_verdict(N: float, lengths: int, rows: int) -> Json:
    """Returns a warning that the critical batch of a size was fitted as if it did not depend on the tokens."""
    text = (
        f"at N = {N:.3g} the critical batch was fitted as equal at all {lengths} numbers of tokens (e = 0), since "
        f"{rows} losses do not determine how it grows with them: add batches or numbers of tokens"
    )
    return {"code": "batch_exponent_fixed", "level": "warn", "text": text}


def methods() -> str:
    """Returns the sentence on how critical batches are estimated."""
    law = find(CRITICAL)
    return (
        f"The critical batch of each size is that of {law.formula} ({law.source}), fitted to the losses at the best "
        "rate of each batch, from the best batch on. Losses whose best rate is at an edge of its grid are left out. "
        "The exponent e is fitted where the losses determine it, and is 0 elsewhere."
    )


def critical_batch(params: Row, D: float) -> np.ndarray:
    """Returns the critical batch in tokens at D training tokens, (draws,), for values (draws,) of b and e by name."""
    return params["b"] * D ** params["e"]


def best_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the frontier of the learning rate: columns N, D, batch, lr, loss, seeds and at_edge.

    rows  of `with_decay`. The best rate of a size, number of tokens and batch has the least mean loss over seeds, among
          the rates that were trained with the most seeds, each with its best weight decay where that was swept; at_edge
          is whether it is the least or the largest of these
    """
    sizes = {name: table.round_down(rows[ROLES[name]].to_numpy(dtype=float), EQUAL) for name in ("N", "D")}
    placed = rows.assign(**sizes, batch=rows["batch_tokens"])
    groups = placed.groupby(["N", "D", "batch", "lr", *([DECAY] if DECAY in placed else [])], as_index=False)
    means = groups.agg(loss=("loss", "mean"), seeds=("seed", "nunique"))
    place = ["N", "D", "batch"]
    complete = pd.DataFrame(means[means["seeds"] == means.groupby(place)["seeds"].transform("max")])
    rates = complete.groupby(place)["lr"]
    at_edge = (complete["lr"] == rates.transform("min")) | (complete["lr"] == rates.transform("max"))
    best = complete.groupby(place)["loss"].idxmin()
    return pd.DataFrame(complete.assign(at_edge=at_edge).loc[best]).reset_index(drop=True)


def from_best_batch(frontier: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows whose batch is at least the best for their number of tokens."""
    best = frontier.loc[frontier.groupby("D")["loss"].idxmin()].set_index("D")["batch"]
    kept = frontier["batch"].to_numpy() >= best.loc[frontier["D"]].to_numpy()
    return pd.DataFrame(frontier[kept]).reset_index(drop=True)


def critical_text(rows: Sequence[Row]) -> str:
    """Returns a sentence with the critical batch of the largest size at its largest number of tokens."""
    row = rows[-1]
    ends = "" if row["lo"] is None else f" {format_interval(row['lo'], row['hi'], ',.0f')}"
    return f"The critical batch at N = {row['N']:.3g}, D = {row['D']:.3g} is {row['critical batch']:,.0f}{ends} tokens."


def frontier_figure(frontier: pd.DataFrame) -> Chart:
    """Loss at the best rate vs batch, a line for each number of tokens and a panel for each size."""
    import altair as alt

    from kleiber.charts.series import Marks, lines
    from kleiber.charts.theme import format_count, loss_axis, pointed, round_count, size_color, values_axis

    tokens = [round_count(D) for D in sorted(frontier["D"].unique())]
    rows = frontier.assign(
        series=[round_count(D) for D in frontier["D"]], panel=[f"{format_count(N)} parameters" for N in frontier["N"]]
    )
    title, counts = "training tokens", frontier.groupby("N")["D"].nunique()
    color, shape = (
        size_color(tokens, alt.Legend(), title, "series"),
        alt.Shape("series:N", title=title, sort=tokens, scale=alt.Scale(domain=tokens)),
    )
    note = "points: each batch size at its best learning rate; the vertical axis is logarithmic"
    note += "; not every size was trained for every length" * bool(counts.nunique() > 1)
    y = alt.Y("loss:Q", title=pointed("loss (nats per token)", "lower"), axis=loss_axis(losses=rows["loss"])["axis"])
    return lines(
        [Marks(rows=rows, value="loss", line=1.6, points=36, shape=shape)],
        values_axis("batch", "batch size (tokens)", rows["batch"], ","), y, "Validation loss vs batch size",
        color=color, panel="panel", log=True, subtitle=note,
    )  # fmt: skip
