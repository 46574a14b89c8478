"""Checks whether planned runs suffice for a law, without torch.

`shortfall` finds out before any training whether a law would have too few points or a singular Jacobian. The studies
that fit a law call it in `check_plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kleiber.config.errors import ConfigError
from kleiber.config.model_size import size, vocabulary_of
from kleiber.config.stages import Budget, quantity
from kleiber.config.targets import build
from kleiber.studies.laws.law import Array, Law, Linear, Shape
from kleiber.studies.study import PlannedPoint, Study
from kleiber.types import Config, Row

NAMES = {
    "N": "model sizes", "D": "token counts", "X": "numbers of experts", "U": "amounts of unique text",
    "M": "pre-training lengths", "p": "replayed fractions",
}  # fmt: skip
STEP, SINGULAR = 1e-4, 1e-6  # relative step of a difference quotient; singular values below this count as zero
DRAWS = 3  # number of random parameter values at which the rank of the Jacobian is computed


def study_of(config: Config) -> Study | None:
    """Instantiates the study of a config; returns None if it has none. Raises ConfigError for invalid options."""
    if config.get("study") is None:
        return None
    try:
        return build(config["study"])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def points_of(runs: Mapping[Path, Row]) -> list[PlannedPoint]:
    """Returns a point for every branch of a trunk and for every single run; runs of other stages give none.

    runs  configs by folder
    """
    unknown: dict[str, float] = {}
    points = []
    for folder, config in runs.items():
        N, flops_per_token = size_of(config, unknown)
        stages = config.get("stages") or {}
        if stages.get("branches"):
            points += [PlannedPoint(folder, config, N, quantity(tokens)) for tokens in stages["branches"]]
        elif not stages:
            batch = quantity(config["batch"]["tokens"])
            D = Budget(**config["budget"]).num_tokens(
                batch_tokens=batch, active_params=N, flops_per_token=flops_per_token
            )
            points.append(PlannedPoint(folder, config, N, D))
    return points


def size_of(config: Config, unknown: dict[str, float]) -> tuple[float, float]:
    """Returns the active parameters and the FLOPs per token.

    For a model without a formula, the parameters are a placeholder that no other model has; `unknown` records them.
    """
    try:
        model_size = size(config["model"], vocabulary_of(config["data"]))
        return float(model_size.active), model_size.flops_per_token
    except (ValueError, KeyError):
        N = unknown.setdefault(str(config["model"]), 1e5 * 1.7 ** len(unknown))
        return N, 6 * N


def fine_tunes(points: Sequence[PlannedPoint]) -> list[dict[str, float]]:
    """Returns a row for each run that starts from another planned run.

    N is the number of parameters, M the pre-training tokens per parameter, D the new tokens, "steps" all tokens of the
    run including replayed ones, and p the replayed fraction. Raises ValueError if no run starts from another.
    """
    bases = {point.folder: point for point in points}
    rows = []
    for point in points:
        path = Path(str((point.config.get("init") or {}).get("path")))
        base = bases.get(path) or bases.get(path.parent)
        if base is not None:
            p = float(((point.config.get("retention") or {}).get("replay") or {}).get("fraction", 0.0))
            M = round(base.D / base.N, 1)
            rows.append({"N": point.N, "M": M, "D": point.D * (1 - p), "steps": point.D, "p": p})
    if not rows:
        raise ValueError(
            "no planned run fine-tunes another planned run, so there is nothing to fit a law of forgetting to"
        )
    return rows


def shortfall(law: Law, inputs: Mapping[str, Array]) -> str | None:
    """Explains why the distinct rows of `inputs` do not determine the law, and what to add; None if they do."""
    rows = np.unique(np.column_stack([inputs[name] for name in law.inputs]), axis=0)
    distinct = {name: len(np.unique(column)) for name, column in zip(law.inputs, rows.T, strict=True)}
    counts = ", ".join(f"{count} {NAMES.get(name, f'values of {name}')}" for name, count in distinct.items())
    few = [NAMES.get(name, f"values of {name}") for name, count in distinct.items() if count < 3]
    add = f"add {' and '.join(few or ['points'])}"
    if len(rows) < len(law.params):
        return f"{len(rows)} points ({counts}) are fewer than the {len(law.params)} parameters of {law.name}: {add}"
    rank = rank_of(law, {name: rows[:, j] for j, name in enumerate(law.inputs)})
    if rank < len(law.params):
        return (
            f"{len(rows)} points ({counts}) determine only {rank} of the {len(law.params)} parameters of {law.name}: "
            f"{add}"
        )
    return None


def rank_of(law: Law, inputs: Mapping[str, Array]) -> int:
    """Returns how many parameters of `law` the points determine: the rank of its Jacobian.

    The rank is the largest over several random parameter values at which no term vanishes.
    """
    rng, best = np.random.default_rng(0), 0
    tokens = float(np.exp(np.log(inputs["D"]).mean())) if "D" in inputs else 1.0
    units = {"D": tokens, "U": tokens, **({"N": float(np.exp(np.log(inputs["N"]).mean()))} if "N" in inputs else {})}
    inputs = {name: column / units.get(name, 1.0) for name, column in inputs.items()}
    for _ in range(DRAWS):
        values = np.array([random_parameter(kind, rng) for kind in law.params.values()])
        steps = values + STEP * np.diag(values)
        back = values - STEP * np.diag(values)
        slopes = (law.evaluate(inputs, steps) - law.evaluate(inputs, back)).T
        norms = np.linalg.norm(slopes, axis=0)
        if np.isfinite(slopes).all() and (norms > 0).all():
            best = max(best, int((np.linalg.svd(slopes / norms, compute_uv=False) > SINGULAR).sum()))
    return best


def random_parameter(kind: Linear | Shape, rng: np.random.Generator) -> float:
    """Returns a random parameter value at which, for inputs near 1, a term neither vanishes nor dominates."""
    if isinstance(kind, Linear):
        return rng.uniform(0.5, 1.5)
    low = max(kind.lo, 0.2)
    return rng.uniform(low, max(1.5 * low, min(kind.hi, 2.0)))
