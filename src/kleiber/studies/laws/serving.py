"""The model size and training tokens with the least FLOPs of training and serving together, from a fitted law.

A model of N parameters that is trained on D tokens and then serves S tokens takes 6 N D + 2 N S FLOPs. The more it
serves, the smaller and longer trained the best model of a given loss is.
Source: Sardana et al. 2023, arXiv:2401.00448
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import fminbound

from kleiber.studies.laws.filters import parse_numbers, parse_values
from kleiber.studies.laws.law import Law
from kleiber.studies.laws.prediction import MAX_DECADES, decades_outside, fitted_values
from kleiber.studies.laws.uncertainty import interval, percent
from kleiber.types import Json, Row

TRAINING, SERVING = 6.0, 2.0  # FLOPs per parameter and token
SEARCHED = 30.0  # range of log N above the smallest possible size
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
        return float((params["B"] / rest) ** (1 / beta_of(params))) if rest > 0 else np.nan

    def objective(self, params: Mapping[str, float], log_n: float) -> float:
        """Returns the logarithm of what is minimized at a size: all FLOPs, or the loss."""
        N = float(np.exp(log_n))
        D = self.tokens(params, N)
        if not np.isfinite(D):
            return np.inf
        return float(np.log(total_flops(N, D, self.served) if self.flops is None else loss_at(params, N, D)))

    def sizes(self, params: Mapping[str, float]) -> tuple[float, float] | None:
        """Returns the range of log N in which the optimum lies; None if no size can meet the demand."""
        if self.flops is not None:
            most = min(self.flops / (SERVING * self.served) if self.served else np.inf, self.max_params, self.flops)
            return float(np.log(most)) - SEARCHED, float(np.log(most))
        assert self.loss is not None
        gap = self.loss - params.get("E", 0.0)
        least = float(np.log(params["A"] / gap) / params["alpha"]) if gap > 0 else np.inf
        most = min(least + SEARCHED, float(np.log(self.max_params)))
        return (least, most) if least < most else None

    def optimum(self, params: Mapping[str, float]) -> dict[str, float]:
        """Returns N, D, total FLOPs and loss of the best model; nan if no size can meet the demand."""
        ends = self.sizes(params)
        if ends is None:
            return dict.fromkeys(QUANTITIES, np.nan)
        # The objective is infinite below the least size, so the search begins a little above.
        inner = (ends[0] + 1e-9, ends[1])
        least: object = fminbound(lambda x: self.objective(params, x), inner[0], inner[1], xtol=1e-9)
        log_n = min((float(np.asarray(least, dtype=np.float64)), inner[1]), key=lambda x: self.objective(params, x))
        N = float(np.exp(log_n))
        D = self.tokens(params, N)
        return {"N": N, "D": D, "total": total_flops(N, D, self.served), "loss": loss_at(params, N, D)}


def beta_of(params: Mapping[str, float]) -> float:
    """Returns the exponent of the tokens: alpha where a law has one exponent for both terms."""
    return params.get("beta", params["alpha"])


def loss_at(params: Mapping[str, float], N: float, D: float) -> float:
    """Returns E + A N^-alpha + B D^-beta."""
    return params.get("E", 0.0) + params["A"] * N ** -params["alpha"] + params["B"] * D ** -beta_of(params)


def total_flops(N: float, D: float, served: float) -> float:
    """Returns the FLOPs of training on D tokens and of serving."""
    return TRAINING * N * D + SERVING * N * served


def check_demand(law: Law, at: Mapping[str, float], served: float, max_params: float | None) -> Demand:
    """Returns the demand of a point that has either L, the loss to reach, or C, the FLOPs of training and serving.

    Raises ValueError for a law without the parameters of Chinchilla, for another point, and for values out of range.
    """
    names = {*law.params, *law.fixed}
    if not {"A", "B", "alpha"} <= names or set(law.inputs) != {"N", "D"}:
        raise ValueError(
            f"--serve needs a law of N and D with the terms A N^-alpha and B D^-beta, which {law.name!r} is not"
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
    point = demand.optimum(_named(law, fitted_values(record))[0])
    if not np.isfinite(point["N"]):
        bound = f" with at most {demand.max_params:.3g} parameters" if np.isfinite(demand.max_params) else ""
        floor = record["params"].get("E", {"value": 0.0})["value"]
        raise ValueError(f"no model{bound} reaches the loss {demand.loss:g} (irreducible loss E = {floor:.4g})")
    decades = float(decades_outside(record["domain"], {"N": point["N"], "D": point["D"]}))
    if decades > max_decades:
        raise ValueError(
            f"the best model, N={point['N']:.3g} and D={point['D']:.3g}, is {decades:.1f} decades outside the rows, "
            f"above the limit of {max_decades:g}; add --force to predict anyway"
        )
    drawn = [demand.optimum(params) for params in _named(law, np.array(record["draws"]).reshape(-1, len(law.params)))]
    answer: Json = {"served": demand.served, "decades": decades}
    for name in QUANTITIES:
        answer[name] = {"value": point[name], **_ends([row[name] for row in drawn], record["level"])}
    only = Demand(0.0, point["loss"], None, demand.max_params).optimum(_named(law, fitted_values(record))[0])
    answer["training_only"] = {**only, "total": total_flops(only["N"], only["D"], demand.served)}
    return answer


def _named(law: Law, values: np.ndarray) -> list[dict[str, float]]:
    """Returns the parameters of each draw by name, fixed ones included."""
    columns = law.named(values)
    return [{name: float(column[row]) for name, column in columns.items()} for row in range(len(values))]


def _ends(drawn: list[float], level: float) -> dict[str, float | None]:
    """Returns the interval of draws; an end is None if more draws than lie beyond it cannot meet the demand."""
    values = np.array(drawn)
    missing = float(np.mean(~np.isfinite(values))) if len(values) else 1.0
    if missing > (1 - level) / 2:
        return {"lo": None, "hi": None}
    lo, hi = interval(values, level)
    return {"lo": float(lo), "hi": float(hi)}


def allocation_lines(answer: Row, level: float) -> list[str]:
    """Formats what `allocate` returns as lines."""
    labels = {"N": "parameters N", "D": "training tokens D", "total": "training and serving (FLOPs)", "loss": "loss"}
    out = [f"{answer['served']:g} tokens served; {answer['decades']:.2f} decades outside the rows"]
    for name, label in labels.items():
        entry = answer[name]
        ends = "no interval" if entry["lo"] is None else f"{percent(level)} [{entry['lo']:.4g}, {entry['hi']:.4g}]"
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
