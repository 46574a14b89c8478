"""The price of a run, a sweep or a study before any of it starts: parameters, FLOPs, tokens, seconds and memory.

`dry_run=true` prints it; `dry_run=FILE.json` also writes it. FILE.json is {schema: "kleiber.plan/1", runs, params,
flops, tokens, seconds, memory_bytes, cells: [{name, params, flops, tokens, seconds}]}:

runs          number of everything that will be trained, with the fine-tunes of bases that are not trained yet
params        of a cell: all parameters of its model, with heads and adapter; at the top: those of the largest cell
tokens        training tokens that are computed: of a tree the trunk once and every cooldown, of a chain every stage
flops         of these tokens, forward and backward, as summary.json counts `flops.model`
seconds       of a cell: its process, evaluation included; at the top: the sum over cells, and the start of the first
              process. With one CPU thread a cell, on a core that no other process uses. None where a few steps cannot
              be trained
memory_bytes  the largest memory of a process, measured in a few steps of the largest cells; None likewise

`ask` starts a process that counts and measures (`kleiber.launch.price_estimate`), so nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kleiber.config.errors import ConfigError, ExitCode, Status
from kleiber.config.stages import quantity
from kleiber.records import folder
from kleiber.records.summary import write_json
from kleiber.types import Config, Json

SCHEMA = "kleiber.plan/1"
NONE = "no run was started (dry_run)"
FARTHER = 10.0  # target compute / compute of the largest point, where the design sets no target
SHOWN = 24  # cells that are listed individually


def price(runs: Mapping[Path, Config]) -> None:
    """Prints what the runs (resolved configs by folder) cost, and writes it where `dry_run` names a file.

    Raises ConfigError where a run cannot be planned.
    """
    configs = list(runs.values())
    single = len(runs) == 1 and configs[0]["design"] is None
    answer = ask(runs, threads_of(configs[0], single), describe=single)
    plan = record(runs, answer)
    finished = sum(folder.status(place) == Status.FINISHED for place in runs)
    lines = answer["description"] if single else [*cell_lines(plan), *interval_lines(configs, answer["cells"])]
    print("\n".join([*lines, *total_lines(plan, answer, configs, finished), NONE]))
    if isinstance(configs[0]["dry_run"], str):
        write_json(Path(configs[0]["dry_run"]), plan)


def record(runs: Mapping[Path, Config], answer: Json) -> Json:
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


def threads_of(config: Config, single: bool) -> int | None:
    """Threads of the process that trains a run; None means PyTorch's default. Cells of a sweep have one each."""
    alone = single or str(config["launcher"].get("_target_", "")).endswith(".Basic")
    return config["trainer"].get("threads") or (None if alone else 1)


def cell_lines(plan: Json) -> list[str]:
    """A line per cell; of many cells, those of most FLOPs."""
    cells = sorted(plan["cells"], key=lambda cell: -cell["flops"])[:SHOWN]
    lines = [f"{'parameters':>12}{'FLOPs':>11}{'tokens':>14}{'minutes':>9}   cell"]
    for cell in [cell for cell in plan["cells"] if cell in cells][:SHOWN]:
        minutes = "-" if cell["seconds"] is None else f"{cell['seconds'] / 60:.1f}"
        lines.append(f"{cell['params']:>12,}{cell['flops']:>11.3g}{cell['tokens']:>14,}{minutes:>9}   {cell['name']}")
    rest = len(plan["cells"]) - len(cells)
    return [*lines, *([f"{'':>12}and {rest} of fewer FLOPs"] if rest else [])]


def total_lines(plan: Json, answer: Json, configs: Sequence[Config], finished: int) -> list[str]:
    """The sums over all cells, a line per quantity."""
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
    duration = f"{hours:.2f} hours of processes, about {hours / workers:.2f} hours with {workers} at once"
    if plan["runs"] == 1:
        per_million = answer["cells"][0]["seconds_per_token"] * 1e6
        duration = f"{plan['seconds'] / 60:,.1f} minutes, {per_million:.3g} s per 1M tokens"
    lines.append(f"time         {duration} (evaluation included; measured now, by a few steps)")
    if answer["unmeasured"]:
        lines.append(f"             some runs have the speed of others, because of: {answer['unmeasured']}")
    if plan["memory_bytes"]:
        lines.append(f"memory       about {plan['memory_bytes'] / 2**20:,.0f} MiB at most in a process")
    return lines


def interval_lines(configs: Sequence[Config], cells: Sequence[Json]) -> list[str]:
    """The expected interval of a design whose study fits a law of N and D; no line for other designs."""
    from kleiber.studies.designs.sizes import study_of

    study = study_of(configs[0])
    if configs[0]["design"] is None or study is None or set(study.law_inputs()) != {"N", "D"}:
        return []
    return [f"interval     {expected(configs[0]['design'], cells)}"]


def expected(design: Config, cells: Sequence[Json]) -> str:
    """Describes the half-width of the interval that the points are expected to give at the design's target."""
    from kleiber.studies.designs.plan import planning_laws
    from kleiber.studies.designs.search import Noise, Points, half_width

    rows = [
        (end["active"], end["tokens"], trunk, end["flops_per_token"])
        for trunk, cell in enumerate(cells)
        for end in cell["ends"]
    ]
    N, D, trunks, flops = np.array(rows, dtype=np.float64).T
    points = Points(N, D, trunks.astype(np.int64), flops)
    noise = Noise(**{name: float(design.get(name, value)) for name, value in asdict(Noise()).items()})
    budget = quantity(design["flops"]) if "target_flops" in design and design.get("flops") else float((D * flops).max())
    target = quantity(design["target_flops"]) if design.get("target_flops") else FARTHER * budget
    half = half_width(points, planning_laws(design.get("law"), 1)[0], target, noise)
    if not np.isfinite(half):
        return f"not identified: {len(rows)} points at these sizes and tokens cannot determine a law of N and D"
    return (
        f"+-{half:.2%} (90 %) on the loss at the optimum of {target:.3g} FLOPs, under the assumed law and "
        f"seed sd {noise.s:.2%}"
    )


def workers_of(config: Config) -> int:
    """Number of cells that run at once."""
    return int(config["launcher"].get("workers") or os.cpu_count() or 1) if "workers" in config["launcher"] else 1


def ask(runs: Mapping[Path, Config], threads: int | None, describe: bool = False) -> Json:
    """Asks a fresh process what runs cost, which are resolved configs by folder.

    Returns `cells` in the order of `runs`, `memory_bytes`, `unmeasured`, `start` (seconds until a process can compute)
    and, with `describe`, the `description` of the single run. A run whose start point is another of `runs` is priced as
    if that run were trained. Raises ConfigError where a run cannot be planned.
    """
    request = {"runs": {str(folder): dict(config) for folder, config in runs.items()}, "describe": describe}
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "kleiber.launch.price_estimate"], text=True,
        input=json.dumps({**request, "asked": time.time()}), capture_output=True, env={**os.environ, **limits},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("kleiber: ")
        raise ConfigError(last if done.returncode == ExitCode.BAD_INPUT else f"the price could not be computed: {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def seconds_per_token(configs: Sequence[Config]) -> list[float]:
    """Seconds of training per token of each config. Raises ValueError where they cannot be measured."""
    threads = configs[0]["trainer"].get("threads") or 1  # cells of a sweep have one each
    answer = ask({Path(f"{number}"): config for number, config in enumerate(configs)}, threads)
    if answer["unmeasured"]:
        raise ValueError(f"the speed of this machine cannot be measured: {answer['unmeasured']}")
    return [cell["seconds_per_token"] for cell in answer["cells"]]
