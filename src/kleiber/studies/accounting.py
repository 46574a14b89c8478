"""How counting moves the exponent: the same runs under 6 N D and exact FLOPs, with and without embeddings.

It only relabels the axes of one table and refits; it refuses to recommend a convention.
Source: Porian et al. 2024, arXiv:2406.19146 (Kaplan's .73-.88 against Chinchilla's .5)
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from kleiber.studies.bootstrap import Draws
from kleiber.studies.fit import fit
from kleiber.studies.law import Array
from kleiber.studies.noise_model import NoiseModel
from kleiber.studies.side_by_side import compare


def conventions(columns: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """(N, C) by convention, for the columns at hand: N total, `Nnoemb` without embeddings, `Cexact` counted FLOPs."""
    N, D = columns["N"], columns["D"]
    found = {"6ND": (N, 6 * N * D)}
    if "Nnoemb" in columns:
        found["6ND without embeddings"] = (columns["Nnoemb"], 6 * columns["Nnoemb"] * D)
    if "Cexact" in columns:
        found["exact FLOPs"] = (N, columns["Cexact"])
        found["N = exact FLOPs / 6D"] = (columns["Cexact"] / (6 * D), columns["Cexact"])
        if "Nnoemb" in columns:
            found["exact FLOPs, N without embeddings"] = (columns["Nnoemb"], columns["Cexact"])
    return found


def accounting(
    model: NoiseModel, drawn: Draws | None, draws: int = 100, seed: int = 0, level: float = 0.9
) -> list[dict]:
    """One row per convention and approach: {convention, approach, a, lo, hi, shift}, shift against 6ND.

    Approach 3 is refitted in the convention's N; its a_opt assumes C = 6 N D in that N. Where N is the model's own, its
    interval is that of the refits `drawn` already, so that one number has one interval. Empty with 6ND alone.
    """
    problem = model.fit.problem
    choices = conventions({**model.columns, **problem.inputs})
    if len(choices) < 2:
        return []
    rows, base = [], {}
    for name, (N, C) in choices.items():
        if np.array_equal(N, problem.inputs["N"]):
            counted, refits = replace(model, columns={"C": C}), drawn
        else:
            counted = recounted(model, N, C)
            refits = counted.draws(draws, seed)
        for exponent in compare(counted, refits, level):
            base.setdefault(exponent.approach, exponent.a)
            shift = exponent.a - base[exponent.approach]
            rows.append(
                {
                    "convention": name,
                    "approach": exponent.approach,
                    "a": exponent.a,
                    "lo": exponent.lo,
                    "hi": exponent.hi,
                    "shift": shift,
                }
            )
    return rows


def recounted(model: NoiseModel, N: Array, C: Array) -> NoiseModel:
    """The law fitted anew with other sizes by row, and the runs behind the rows with them."""
    problem, runs = model.fit.problem, model.runs
    inputs = {**problem.inputs, "N": N}
    refitted = fit(problem.law, inputs, problem.target, problem.loss_fn, problem.delta, problem.space, problem.scale)
    runs = replace(runs, inputs={**runs.inputs, "N": N[runs.row]})
    return replace(model, fit=refitted, runs=runs, layout=replace(model.layout, log_size=np.log(N)), columns={"C": C})
