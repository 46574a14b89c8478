"""The model size and training tokens with the least FLOPs of training and serving together, from a fitted law.

A model of N parameters that is trained on D tokens and then serves S tokens takes 6 N D + 2 N S FLOPs. The more it
serves, the smaller and longer trained the best model of a given loss is.
Source: Sardana et al. 2023, arXiv:2401.00448
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from kleiber.studies.laws.allocation import beta_of, is_additive, loss_at, optimum
from kleiber.studies.laws.filters import parse_numbers, parse_values
from kleiber.studies.laws.fit import depends
from kleiber.studies.laws.law import Array, Law
from kleiber.studies.laws.prediction import MAX_DECADES, complete_point, decades_outside, distance_text, fitted_values
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

TRAINING, SERVING = 6.0, 2.0  # FLOPs per parameter and token
QUANTITIES = ("N", "D", "total", "loss")


@dataclass(frozen=True)
class Demand:
    """What the model is for: the tokens that it serves, and either its loss or all FLOPs.

    served      tokens S that it serves
    loss        that it has to reach with the least FLOPs; None: the least loss within `flops`
    flops       of training and serving
    max_params  largest number of parameters, such as those that fit into the memory or the latency of the servers
    """

    served: float
    loss: float | None = None
    flops: float | None = None
    max_params: float = np.inf

    def tokens(self, params: Mapping[str, float], N: float) -> float:
        """Returns the training tokens of a model of N parameters; nan where it cannot meet the demand."""
        if self.flops is not None:
            D = (self.flops - SERVING * N * self.served) / (TRAINING * N)
            return D if D > 0 else np.nan
        assert self.loss is not None
        rest = self.loss - params.get("E", 0.0) - params["A"] * N ** -params["alpha"]
        return np.exp(np.log(params["B"] / rest) / beta_of(params)) if rest > 0 else np.nan

    def slope(self, params: Mapping[str, float], log_n: float) -> float:
        """Returns a number that increases with log N and is > 0 where a smaller model is better.

        It is the log of the loss that a FLOP of training on further tokens saves, less that of a larger model, whose
        FLOPs include those of serving: log[beta B D^-beta / D] - log[alpha A N^-alpha / (D + S/3)].
        """
        D, beta = self.tokens(params, np.exp(log_n)), beta_of(params)
        for_tokens = np.log(beta * params["B"]) - beta * np.log(D)
        for_size = np.log(params["alpha"] * params["A"]) - params["alpha"] * log_n
        return float(for_tokens - for_size + np.log1p(SERVING * self.served / (TRAINING * D)))

    def sizes(self, params: Mapping[str, float]) -> tuple[float, float]:
        """Returns the ends of a range of log N with the best size; nan if no size can meet the demand.

        Without serving, the upper end is the best size. At the lower end, serving takes no more FLOPs than training,
        and `slope` is < 0.
        """
        alpha, beta = params["alpha"], beta_of(params)
        if self.flops is not None:
            sizes, _ = optimum({name: np.array(value) for name, value in params.items()}, self.flops)
            best, most = float(np.log(sizes)), float(np.log(self.flops / np.float64(SERVING * self.served)))
            return min(best - (1 + beta) / (alpha + beta), most - 1), min(best, most - 1e-9)
        assert self.loss is not None
        gap = np.float64(self.loss - params.get("E", 0.0))
        cheap = params["B"] / gap * (TRAINING / np.float64(SERVING * self.served)) ** beta
        shares = np.array([min(alpha / (alpha + 3 * beta), cheap), alpha / (alpha + beta)])  # of B D^-beta in the gap
        low, high = (np.log(params["A"] / gap) - np.log1p(-shares)) / alpha
        return float(low), float(high)

    @np.errstate(all="ignore")
    def optimum(self, params: Mapping[str, float]) -> dict[str, float]:
        """Returns N, D, total FLOPs and loss of the best model; nan if no size can meet the demand."""
        low, high = self.sizes(params)
        log_n = float(np.minimum(high, np.log(self.max_params)))
        if self.slope(params, log_n) > 0:  # otherwise the largest size is the best
            if not self.slope(params, low) < 0:
                return dict.fromkeys(QUANTITIES, np.nan)
            zero: object = brentq(lambda x: self.slope(params, x), low, log_n, xtol=1e-12)
            log_n = float(np.asarray(zero, dtype=np.float64))
        N = np.exp(log_n)
        D = self.tokens(params, N)
        if not np.isfinite(N * D):
            return dict.fromkeys(QUANTITIES, np.nan)
        return {"N": N, "D": D, "total": total_flops(N, D, self.served), "loss": loss_at(params, N, D)}


def total_flops(N: float, D: float, served: float) -> float:
    """Returns the FLOPs of training on D tokens and of serving."""
    return TRAINING * N * D + SERVING * N * served


def check_demand(law: Law, at: Mapping[str, float], served: float, max_params: float | None) -> Demand:
    """Returns the demand of a point that has either L, the loss to reach, or C, the FLOPs of training and serving.

    Raises ValueError for a law that is not of the form of Chinchilla, for another point, and for values out of range.
    """
    if not is_additive(law):
        raise ValueError(
            "--serve needs a law of N and D with the terms E, A N^-alpha and B D^-beta and no others, which "
            f"{law.name!r} is not"
        )
    if set(at) not in ({"L"}, {"C"}):
        raise ValueError(
            "--serve needs the loss to reach, such as L=2.5, or the FLOPs of training and serving, such as C=1e22, and "
            f"no other value; it got {', '.join(at) or 'none'}"
        )
    values = {**at, "--serve": served, **({} if max_params is None else {"--max-params": max_params})}
    for name, value in values.items():
        if not (np.isfinite(value) and (value > 0 or (name == "--serve" and value == 0))):
            raise ValueError(f"{name}={value:g} must be a finite number > 0")
    return Demand(served, at.get("L"), at.get("C"), np.inf if max_params is None else max_params)


def allocate(record: Row, law: Law, demand: Demand, max_decades: float = MAX_DECADES) -> Json:
    """Returns the best model for a demand from an entry of laws.json, and the one that training alone would choose.

    The entries N, D, total (FLOPs of training and serving) and loss have value, lo and hi; `training_only` has the same
    numbers without intervals for the model of the same loss that is best without serving. Raises ValueError if no model
    can meet the demand, and if the best is more than `max_decades` outside the fitted rows.
    """
    params = _named(law, fitted_values(record))[0]
    dropped = [name for name in ("A", "B") if params[name] == 0]
    if dropped:
        raise ValueError(f"--serve: the term of {dropped[0]} was fitted to 0 and dropped, so the law has no best size")
    point = demand.optimum(params)
    if not np.isfinite(point["N"]):
        bound = f" with at most {demand.max_params:.3g} parameters" if np.isfinite(demand.max_params) else ""
        floor = record["params"].get("E", {"value": 0.0})["value"]
        raise ValueError(f"no model{bound} reaches the loss {demand.loss:g} (irreducible loss E = {floor:.4g})")
    decades = float(decades_outside(record["domain"], complete_point({"N": point["N"], "D": point["D"]})))
    if decades > max_decades:
        raise ValueError(
            f"the best model, N={point['N']:.3g} and D={point['D']:.3g}, is {decades:.1f} decades outside the rows, "
            f"above the limit of {max_decades:g}; add --force to predict anyway"
        )
    drawn, undetermined, flat = (
        [demand.optimum(draw) for draw in _named(law, np.array(record.get(key, ())).reshape(-1, len(law.params)))]
        for key in ("draws", "untold", "flat")
    )
    answer: Json = {"served": demand.served, "decades": decades}
    for name in QUANTITIES:
        sampled, ways, along = (np.array([row[name] for row in rows]) for rows in (drawn, undetermined, flat))
        determined = not depends(ways) and np.isfinite([*ways, *along]).all()
        lo, hi = _ends(sampled, record["level"]) if determined else (None, None)
        if lo is not None and hi is not None:
            lo, hi = min([lo, *along.tolist()]), max([hi, *along.tolist()])
        answer[name] = {"value": point[name], "lo": lo, "hi": hi}
    only = Demand(0.0, point["loss"], None, demand.max_params).optimum(params)
    answer["training_only"] = {**only, "total": total_flops(only["N"], only["D"], demand.served)}
    return answer


def _named(law: Law, values: np.ndarray) -> list[dict[str, float]]:
    """Returns the parameters of each draw by name, fixed ones included."""
    columns = law.named(values)
    return [{name: float(column[row]) for name, column in columns.items()} for row in range(len(values))]


def _ends(values: Array, level: float) -> tuple[float, float] | tuple[None, None]:
    """Returns the interval of draws; None if more draws than lie beyond an end cannot meet the demand."""
    missing = float(np.mean(~np.isfinite(values))) if len(values) else 1.0
    if missing > (1 - level) / 2:
        return None, None
    lo, hi = interval(values, level)
    return float(lo), float(hi)


def allocation_lines(answer: Row, level: float) -> list[str]:
    """Formats what `allocate` returns as lines."""
    labels = {"N": "parameters N", "D": "training tokens D", "total": "training and serving (FLOPs)", "loss": "loss"}
    out = [f"{answer['served']:g} tokens served; {distance_text(answer['decades'])}"]
    for name, label in labels.items():
        entry = answer[name]
        ends = (
            "no interval"
            if entry["lo"] is None
            else f"{percent(level)} {format_interval(entry['lo'], entry['hi'], '.4g')}"
        )
        if entry["lo"] is not None and np.isclose(entry["lo"], entry["hi"], rtol=1e-6):
            ends = "as demanded"
        out.append(f"  {label:<28} {entry['value']:.4g}   {ends}")
    only, best = answer["training_only"], answer["total"]["value"]
    out.append(
        f"  the compute-optimal model of the same loss, N = {only['N']:.3g} and D = {only['D']:.3g}, takes "
        f"{only['total']:.3g} FLOPs to train and serve, {only['total'] / best:.2f} times as many"
    )
    return out


def lines_for(
    record: Row, form: Law, words: Sequence[str], serve: str | None, max_params: str | None, max_decades: float
) -> list[str]:
    """Returns the printed lines of `allocate` for the options of a command line.

    Raises ValueError for malformed options, and for a demand that cannot be met.
    """
    if serve is None:
        raise ValueError("--max-params bounds the model of --serve TOKENS, which is missing")
    (served,) = parse_numbers(serve, "--serve")
    (most,) = [None] if max_params is None else parse_numbers(max_params, "--max-params")
    demand = check_demand(form, parse_values(words, "predict"), served, most)
    return allocation_lines(allocate(record, form, demand, max_decades), record["level"])
