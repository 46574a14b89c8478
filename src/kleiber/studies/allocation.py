"""How to spend compute, by this table: the approaches, how counting moves them, and N_opt(C), D_opt(C) with bands.

For tables of N and D only; for others every list is empty. Approaches that disagree become a verdict.
"""

from dataclasses import asdict

import numpy as np

from kleiber.studies import approaches
from kleiber.studies.accounting import accounting
from kleiber.studies.bootstrap import Draws
from kleiber.studies.noise_model import NoiseModel
from kleiber.studies.side_by_side import compare
from kleiber.studies.verdicts import Verdict

FARTHEST = 4.0  # compute over that of the largest run, up to which an allocation is told


def allocate(model: NoiseModel, draws: Draws | None, judged: list[Verdict], level: float, seed: int) -> dict[str, list]:
    """The record's approaches, accounting and allocation; a disagreement is added to `judged`."""
    found: dict[str, list] = {"approaches": [], "accounting": [], "allocation": []}
    compute = model.compute
    if set(model.fit.law.inputs) != {"N", "D"} or compute is None:
        return found
    compared = compare(model, draws, level)
    found["approaches"] = [{k: v for k, v in asdict(one).items() if k != "log_k"} for one in compared]
    apart = approaches.disagreement(compared)
    if apart:
        judged.append(Verdict("approaches_disagree", "warn", apart))
    found["accounting"] = accounting(model, draws, seed=seed, level=level)
    if draws:
        budgets = np.geomspace(compute.min(), FARTHEST * compute.max(), 13)
        found["allocation"] = approaches.allocation(draws, budgets, level)
    return found
