"""What a planned sweep would cost and tell, before a cell of it starts: runs, FLOPs, hours here, the expected interval.

FLOPs are exact by formula; hours come from a probe of the smallest, a middle and the largest model, without
compilation. The interval is that of the design's mathematics under an assumed law (`studies.information`), not a
promise.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kleiber.budget import Budget, quantity
from kleiber.chain import is_chain, stage_configs
from kleiber.probe import seconds_per_token
from kleiber.studies.information import Noise, Points, half_width
from kleiber.studies.planning import planning_laws
from kleiber.studies.sizes import Size, size, vocabulary_of

NONE = "no cell was started (dry_run=true)"
FARTHER = 10.0  # target compute over the largest point's, where the design names none


def quote(configs: Sequence[Mapping[str, Any]], finished: int = 0) -> str:
    """The plan in words; `finished` cells are there already.

    Cells without a formula for their cost are counted only.
    """
    try:
        return priced(configs, finished)
    except ValueError as error:
        return f"runs         {len(configs)}, {finished} of them finished already\nnot priced   {error}\n{NONE}"


def priced(configs: Sequence[Mapping[str, Any]], finished: int) -> str:
    sizes = [size(config["model"], vocabulary_of(config["data"])) for config in configs]
    tokens = [lengths(config, one) for config, one in zip(configs, sizes, strict=True)]
    costs = [cost(config, one, n) for config, one, n in zip(configs, sizes, tokens, strict=True)]
    lines = [f"{'cell':<5}{'width':>6}{'parameters':>12}{'seed':>6}{'FLOPs':>11}   tokens"]
    for i, (config, one, n) in enumerate(zip(configs, sizes, tokens, strict=True), 1):
        told = " ".join(f"{value:,.0f}" for value in n)
        lines.append(f"{i:<5}{one.width:>6}{one.active:>12,}{config['seed']:>6}{costs[i - 1]:>11.3g}   {told}")
    seconds, workers = hours(configs, sizes, costs), _workers(configs[0])
    runs, ends = len(configs), sum(map(len, tokens))
    lines.append(f"runs         {runs} ({ends} points), {finished} of them finished already")
    lines.append(f"compute      {sum(costs):.3g} FLOPs")
    lines.append(
        f"time         {sum(seconds) / 3600:.2f} hours of processes, about {sum(seconds) / 3600 / workers:.2f} hours "
        f"with {workers} at once (measured without compilation; on top: {' and '.join(extra(configs))})"
    )
    if not compares_arms(configs[0]):
        lines.append(f"interval     {expected(configs, sizes, tokens)}")
    return "\n".join([*lines, NONE])


def compares_arms(config: Mapping[str, Any]) -> bool:
    """Whether the design sets arms against each other, so that no law of N and D is asked of its cells."""
    return "arms" in (config["design"] or {})


def extra(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the hours leave out."""
    retained = any(one["retention"] for config in configs for one in stage_configs(config).values())
    return ["evaluation", "what retention methods compute"] if retained else ["evaluation"]


def lengths(config: Mapping[str, Any], one: Size) -> list[float]:
    """Training tokens of each end of a cell: its branches, or what its budget buys, of a chain in all its stages."""
    if is_chain(config):
        return [sum(n for own in stage_configs(config).values() for n in lengths(own, one))]
    batch = round(quantity(config["batch"]["tokens"]))
    stages = config["stages"]
    if stages is not None:
        return [max(2, round(quantity(n) / batch)) * batch for n in stages["branches"]]
    steps = Budget(**config["budget"]).num_steps(
        batch_tokens=batch, active_params=one.active, flops_per_token=one.flops_per_token
    )
    return [steps * batch]


def cost(config: Mapping[str, Any], one: Size, tokens: Sequence[float]) -> float:
    """FLOPs of a cell: the trunk once and every cooldown."""
    if len(tokens) == 1:
        return tokens[0] * one.flops_per_token
    decay = float(config["schedule"].get("decay", 0.2))
    return ((1 - decay) * max(tokens) + decay * sum(tokens)) * one.flops_per_token


def hours(configs: Sequence[Mapping[str, Any]], sizes: Sequence[Size], costs: Sequence[float]) -> list[float]:
    """Seconds of each cell, by the measured FLOP/s of up to three sizes, interpolated in the logarithm of size."""
    order = np.argsort([one.flops_per_token for one in sizes], kind="stable")
    chosen = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])})
    measured = seconds_per_token([configs[i] for i in chosen])
    known = sorted(
        {sizes[i].flops_per_token: sizes[i].flops_per_token / s for i, s in zip(chosen, measured, strict=True)}.items()
    )
    x, y = np.log(np.array(known)).T
    speeds = np.exp(np.interp(np.log([one.flops_per_token for one in sizes]), x, y))
    return [c / speed for c, speed in zip(costs, speeds, strict=True)]


def expected(configs: Sequence[Mapping[str, Any]], sizes: Sequence[Size], tokens: Sequence[Sequence[float]]) -> str:
    """The half-width that the points promise at the design's target, in words."""
    rows = [
        (one.active, n, trunk, one.flops_per_token)
        for trunk, (one, ends) in enumerate(zip(sizes, tokens, strict=True))
        for n in ends
    ]
    N, D, trunks, flops = np.array(rows, dtype=np.float64).T
    points = Points(N, D, trunks.astype(np.int64), flops)
    node = configs[0]["design"] or {}
    noise = Noise(*(float(node.get(name, getattr(Noise(), name))) for name in ("s", "rho", "kappa", "ell")))
    asked = node.get("target_flops")
    own = quantity(node["flops"]) if "target_flops" in node and node.get("flops") else float((D * flops).max())
    target = quantity(asked) if asked else FARTHER * own
    half = half_width(points, planning_laws(node.get("law"), 1)[0], target, noise)
    if not np.isfinite(half):
        return f"not identified: {len(rows)} points at these sizes and tokens do not determine a law of N and D"
    return (
        f"+-{half:.2%} (90 %) on the loss at the optimum of {target:.3g} FLOPs, under the assumed law and "
        f"seed sd {noise.s:.2%}"
    )


def _workers(config: Mapping[str, Any]) -> int:
    return int(config["launcher"].get("workers") or os.cpu_count() or 1) if "workers" in config["launcher"] else 1
