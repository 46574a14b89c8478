"""The price of what a command would train, a run, a sweep or a study, before any of it starts.

`dry_run=true` prints it, `dry_run=FILE.json` writes it too.

FILE.json is {schema: "kleiber.plan/1", runs, params, flops, tokens, seconds, memory_bytes, cells: [{name, params,
flops, tokens, seconds}]}:

runs          everything that will be trained, fine-tunes of bases included that are not trained yet
params        of a cell: all parameters of its model, with heads and adapter; at the top: those of the largest cell
tokens        training tokens that are computed: of a tree the trunk once and every cooldown, of a chain every stage
flops         of these tokens, forward and backward, as summary.json counts `flops.model`
seconds       of a cell: its process, evaluation included; at the top: the sum over cells, and the start of the first
              process. With one CPU thread a cell, of a core that no other process asks for. None where a few steps
              cannot be trained
memory_bytes  the largest memory of one process, measured in a few steps of the largest cells; None likewise

A process of its own counts and measures (`probe`), so nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kleiber.config.budget import quantity
from kleiber.config.errors import ConfigError
from kleiber.records import folder
from kleiber.records.summary import write_json

SCHEMA = "kleiber.plan/1"
NONE = "no run was started (dry_run)"
FARTHER = 10.0  # target compute over the largest point's, where the design names none
SHOWN = 24  # cells that are listed one by one


def price(runs: Mapping[Path, Mapping[str, Any]]) -> None:
    """Prints what the runs (resolved configs by folder) cost, and writes it where `dry_run` names a file.

    Raises ConfigError where a run cannot be planned.
    """
    configs = list(runs.values())
    single = len(runs) == 1 and configs[0]["design"] is None
    answer = ask(runs, threads_of(configs[0], single), words=single)
    plan = record(runs, answer)
    finished = sum(folder.status(place) == "finished" for place in runs)
    lines = answer["words"] if single else [*cell_lines(plan), *interval_lines(configs, answer["cells"])]
    print("\n".join([*lines, *total_lines(plan, answer, configs, finished), NONE]))
    if isinstance(configs[0]["dry_run"], str):
        write_json(Path(configs[0]["dry_run"]), plan)


def record(runs: Mapping[Path, Mapping[str, Any]], answer: Mapping[str, Any]) -> dict[str, Any]:
    """The content of FILE.json."""
    cells = [
        {"name": place.name, **{key: cell[key] for key in ("params", "flops", "tokens", "seconds")}}
        for place, cell in zip(runs, answer["cells"], strict=True)
    ]
    seconds = [cell["seconds"] for cell in cells]
    return {
        "schema": SCHEMA,
        "runs": len(cells),
        "params": max(cell["params"] for cell in cells),
        "flops": sum(cell["flops"] for cell in cells),
        "tokens": sum(cell["tokens"] for cell in cells),
        "seconds": None if None in seconds else sum(seconds) + answer["start"],
        "memory_bytes": answer["memory_bytes"],
        "cells": cells,
    }


def threads_of(config: Mapping[str, Any], single: bool) -> int | None:
    """Threads of the process that trains a run; None leaves it to PyTorch. Cells of a sweep have one each."""
    alone = single or str(config["launcher"].get("_target_", "")).endswith(".Basic")
    return config["trainer"].get("threads") or (None if alone else 1)


def cell_lines(plan: Mapping[str, Any]) -> list[str]:
    """A line a cell; of many, the largest ones."""
    cells = sorted(plan["cells"], key=lambda cell: -cell["flops"])[:SHOWN]
    lines = [f"{'parameters':>12}{'FLOPs':>11}{'tokens':>14}{'minutes':>9}   cell"]
    for cell in [cell for cell in plan["cells"] if cell in cells][:SHOWN]:
        minutes = "-" if cell["seconds"] is None else f"{cell['seconds'] / 60:.1f}"
        lines.append(f"{cell['params']:>12,}{cell['flops']:>11.3g}{cell['tokens']:>14,}{minutes:>9}   {cell['name']}")
    rest = len(plan["cells"]) - len(cells)
    return [*lines, *([f"{'':>12}and {rest} of fewer FLOPs"] if rest else [])]


def total_lines(
    plan: Mapping[str, Any], answer: Mapping[str, Any], configs: Sequence[Mapping[str, Any]], finished: int
) -> list[str]:
    """The sums in words."""
    ends = sum(len(cell["ends"]) for cell in answer["cells"])
    done = f", {finished} of them finished already" if finished else ""
    lines = [
        f"runs         {plan['runs']} ({ends} points){done}",
        f"largest      {plan['params']:,} parameters",
        f"compute      {plan['flops']:.3g} FLOPs over {plan['tokens']:,} tokens",
    ]
    if plan["seconds"] is None:
        return [*lines, f"time         not measured: {answer['unmeasured']}"]
    hours, workers = plan["seconds"] / 3600, 1 if plan["runs"] == 1 else workers_of(configs[0])
    spent = f"{hours:.2f} hours of processes, about {hours / workers:.2f} hours with {workers} at once"
    if plan["runs"] == 1:
        spent = (
            f"{plan['seconds'] / 60:,.1f} minutes, {answer['cells'][0]['seconds_per_token'] * 1e6:.3g} s per 1M tokens"
        )
    lines.append(f"time         {spent} (evaluation included; measured now, by a few steps)")
    if answer["unmeasured"]:
        lines.append(f"             some runs are timed as others are, since one could not be: {answer['unmeasured']}")
    if plan["memory_bytes"]:
        lines.append(f"memory       about {plan['memory_bytes'] / 2**20:,.0f} MiB at most in a process")
    return lines


def interval_lines(configs: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the points of a design promise, where a law of N and D is asked of them."""
    from kleiber.studies.designs.sizes import study_of

    study = study_of(configs[0])
    if configs[0]["design"] is None or study is None or set(study.law_inputs()) != {"N", "D"}:
        return []
    return [f"interval     {expected(configs[0]['design'], cells)}"]


def expected(design: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The half-width that the points promise at the design's target, in words."""
    from kleiber.studies.designs.plan import planning_laws
    from kleiber.studies.designs.search import Noise, Points, half_width

    rows = [
        (end["active"], end["tokens"], trunk, end["flops_per_token"])
        for trunk, cell in enumerate(cells)
        for end in cell["ends"]
    ]
    N, D, trunks, flops = np.array(rows, dtype=np.float64).T
    points = Points(N, D, trunks.astype(np.int64), flops)
    noise = Noise(*(float(design.get(name, getattr(Noise(), name))) for name in ("s", "rho", "kappa", "ell")))
    asked = design.get("target_flops")
    budget = quantity(design["flops"]) if "target_flops" in design and design.get("flops") else float((D * flops).max())
    target = quantity(asked) if asked else FARTHER * budget
    half = half_width(points, planning_laws(design.get("law"), 1)[0], target, noise)
    if not np.isfinite(half):
        return f"not identified: {len(rows)} points at these sizes and tokens do not determine a law of N and D"
    return (
        f"+-{half:.2%} (90 %) on the loss at the optimum of {target:.3g} FLOPs, under the assumed law and "
        f"seed sd {noise.s:.2%}"
    )


def workers_of(config: Mapping[str, Any]) -> int:
    """Cells at once."""
    return int(config["launcher"].get("workers") or os.cpu_count() or 1) if "workers" in config["launcher"] else 1


def ask(runs: Mapping[Path, Mapping[str, Any]], threads: int | None, words: bool = False) -> dict[str, Any]:
    """The answer of a fresh process: `cells` in the order of `runs` (resolved configs by folder), `memory_bytes`,
    `start` (seconds until a process can compute), and with `words` the one run as `plan.describe` tells it.

    A run whose start point is another of `runs` is priced as if that one were trained. Raises ConfigError where a run
    cannot be planned.
    """
    request = {"runs": {str(folder): dict(config) for folder, config in runs.items()}, "words": words}
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "kleiber.launch.price_worker"], text=True,
        input=json.dumps({**request, "asked": time.time()}), capture_output=True, env={**os.environ, **limits},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("kleiber: ")
        raise ConfigError(last if done.returncode == 2 else f"the price could not be computed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def seconds_per_token(configs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds of training per token of each config. Raises ValueError where they cannot be measured."""
    threads = configs[0]["trainer"].get("threads") or 1  # cells of a sweep have one each
    answer = ask({Path(f"{number}"): config for number, config in enumerate(configs)}, threads)
    if answer["unmeasured"]:
        raise ValueError(f"the speed of this machine could not be measured: {answer['unmeasured']}")
    return [cell["seconds_per_token"] for cell in answer["cells"]]
