"""A dry run: estimates what a run, a sweep or a study will cost, without training it.

`dry_run=true` prints the estimate; `dry_run=FILE.json` also writes it. FILE.json is {schema: "kleiber.plan/1", runs,
params, flops, tokens, seconds, cost, memory_bytes, memory_plan,
cells: [{name, params, flops, tokens, seconds}]}:

runs          number of runs that will be trained, including fine-tunes of bases that are not trained yet
params        all parameters of the model of a cell, with task heads and adapter; at the top those of the largest cell
tokens        training tokens that are computed: in a tree those of the trunk once and of each cooldown, in a chain
              those of every stage
flops         training FLOPs of these tokens, forward and backward, counted as `flops.model` in summary.json
seconds       of a cell: duration of its process with one CPU thread on a free core, including evaluation; at the top
              the sum over all cells, plus the start of the first process. None when no run can be measured
cost          energy and price of these seconds, as in summary.json (`kleiber.config.cost.cost_of`); the power is stated
              (cost.watts) or assumed. None when no run can be measured
memory_bytes  largest memory of a process, measured in a few steps of the largest cells; None when none can be measured
memory_plan   of a single run: planned bytes of each device at the peak of a step (`kleiber.runs.memory_plan`), its
              `parts`, `rows` of a forward pass, `device` and `devices`; None for a sweep and where it cannot be planned

`estimate_costs` starts the process that counts and measures (`kleiber.launch.price_estimate`), so this module imports
no torch.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from kleiber.config.child_process import python_command, safe_environment
from kleiber.config.cost import cost_of, describe_costs, device_power, read_cost
from kleiber.config.errors import ConfigError, ExitCode, Status
from kleiber.config.model_size import available_cores
from kleiber.launch.cell import Cell, archived_by_hash
from kleiber.launch.local_pool import gpu_ids
from kleiber.records import folder
from kleiber.records.files import write_json
from kleiber.records.folder import config_hash
from kleiber.records.progress import activity, format_duration
from kleiber.records.terminal import columns, print_line, wrapped
from kleiber.types import Config, Json

SCHEMA = "kleiber.plan/1"
DRY_RUN = "dry run: nothing was trained"
EXTRAPOLATION = 10.0  # compute of the predicted loss over the compute of the largest point
LISTED_GROUPS = 8  # largest number of groups of equal cells that are listed
INDENT = 13  # columns of the label of a line
SHOWN_WARNINGS = 3  # of a sweep


def print_price(runs: Mapping[Path, Config]) -> None:
    """Prints what runs will cost, and writes it to the file that `dry_run` names, if it names one.

    runs  resolved configs by folder

    Raises ConfigError when a run cannot be planned.
    """
    configs = list(runs.values())
    single = len(runs) == 1 and configs[0]["design"] is None
    estimate = estimate_costs(runs, num_threads(configs[0], single), describe=single)
    plan = plan_record(runs, estimate)
    finished = finished_cells(runs)
    if single:
        lines = estimate["description"]
    else:
        lines = [*cell_lines(plan), *interval_lines(configs, estimate["cells"]), *warning_lines(estimate["warnings"])]
    lines += [*total_lines(plan, estimate, configs, finished), DRY_RUN]
    print_line("\n".join(wrapped(line, INDENT, columns()) for line in lines))
    if isinstance(configs[0]["dry_run"], str):
        write_json(Path(configs[0]["dry_run"]), plan)


def finished_cells(runs: Mapping[Path, Config]) -> set[str]:
    """Returns the names of runs that are finished, in their folders or in the archive of their study.

    runs  as in `print_price`
    """
    archived = archived_by_hash(next(iter(runs)).parent)
    return {
        place.name
        for place, config in runs.items()
        if folder.status(place) == Status.FINISHED or (archived and config_hash(config) in archived)
    }


def warning_lines(warnings: Sequence[str]) -> list[str]:
    """Returns the first distinct warnings on the runs of a sweep, and how many more there are."""
    distinct = [*dict.fromkeys(warnings)]
    num_hidden = len(distinct) - SHOWN_WARNINGS
    lines = [f"warning      {text}" for text in distinct[:SHOWN_WARNINGS]]
    closing = f"             and {num_hidden} more warning{'s' * (num_hidden != 1)} of this kind"
    return [*lines, closing] if num_hidden > 0 else lines


def plan_record(runs: Mapping[Path, Config], estimate: Json) -> Json:
    """Returns the content of FILE.json.

    estimate  what `estimate_costs` returned for `runs`
    """
    cells = [
        {"name": place.name, **{key: cell[key] for key in ("params", "flops", "tokens", "seconds")}}
        for place, cell in zip(runs, estimate["cells"], strict=True)
    ]
    seconds = [cell["seconds"] for cell in cells]
    return {
        "schema": SCHEMA,
        "runs": len(cells),
        "params": max(cell["params"] for cell in cells),
        "flops": sum(cell["flops"] for cell in cells),
        "tokens": sum(cell["tokens"] for cell in cells),
        "seconds": None if None in seconds else sum(seconds) + estimate["start"],
        "cost": plan_cost(list(runs.values()), seconds, estimate),
        "memory_bytes": estimate["memory_bytes"],
        "memory_plan": estimate["memory_plan"],
        "cells": cells,
    }


def plan_cost(configs: Sequence[Config], seconds: Sequence[float | None], estimate: Json) -> Json | None:
    """Returns the sum of what the cells cost, with the settings of the first one.

    seconds  of each cell on each of its devices
    """
    cost, trainer = read_cost(configs[0]), configs[0]["trainer"]
    if None in seconds:
        return None
    devices = [config["trainer"].get("devices") or 1 for config in configs]
    device_seconds = sum(each * number for each, number in zip(seconds, devices, strict=True) if each is not None)
    power = device_power(cost, trainer.get("accelerator", "cpu"), estimate["threads"])
    return cost_of(cost, power, device_seconds + estimate["start"])


def num_threads(config: Config, single: bool) -> int | None:
    """Returns the CPU threads of the process that trains a run; None means PyTorch's default.

    single  whether the run is no cell of a sweep, where a cell has one thread
    """
    no_pool = single or str(config["launcher"].get("_target_", "")).endswith(".Basic")
    return config["trainer"].get("threads") or (None if no_pool else 1)


def cell_lines(plan: Json) -> list[str]:
    """Returns a line for each group of cells of equal size and tokens; of many groups, for the largest."""
    groups: dict[tuple[int, int], list[Json]] = {}
    for cell in plan["cells"]:
        groups.setdefault((cell["params"], cell["tokens"]), []).append(cell)
    largest = sorted(groups.values(), key=lambda group: -group[0]["flops"])[:LISTED_GROUPS]
    lines = [f"{'cells':>6}{'parameters':>13}{'FLOPs':>10}{'tokens':>13}{'each':>13}   such as"]
    for group in [group for group in groups.values() if group in largest]:
        cell, seconds = group[0], [member["seconds"] for member in group]
        each = "-" if None in seconds else format_duration(sum(seconds) / len(seconds))
        numbers = f"{len(group):>6}{cell['params']:>13,}{cell['flops']:>10.3g}{cell['tokens']:>13,}{each:>13}"
        lines.append(f"{numbers}   {cell['name']}")
    rest = len(plan["cells"]) - sum(map(len, largest))
    return [*lines, *([f"{rest:>6} cells with fewer FLOPs"] if rest else [])]


def total_lines(plan: Json, estimate: Json, configs: Sequence[Config], finished: Collection[str]) -> list[str]:
    """Returns the totals over all cells, a line for each quantity.

    finished  names of the cells that are finished already
    """
    points = sum(len(cell["ends"]) for cell in estimate["cells"])
    done = f", {len(finished)} of them finished already" if finished else ""
    lines = [
        f"runs         {plan['runs']} ({points} points){done}",
        f"largest      {plan['params']:,} parameters",
        f"compute      {plan['flops']:.3g} FLOPs over {plan['tokens']:,} tokens",
    ]
    if estimate["description"] and points == 1:  # which has parameters and compute already
        lines = ["finished     repeat the command without dry_run to see its result"] if finished else []
    if plan["seconds"] is None:
        return [*lines, f"time         unknown: {estimate['unmeasured']}"]
    total, workers = plan["seconds"], max(1, min(plan["runs"], num_workers(configs[0])))
    duration = f"{format_duration(total)} of one process"
    duration += f", {format_duration(total / workers)} with {workers}" if workers > 1 else ""
    if plan["runs"] == 1:
        per_million = estimate["cells"][0]["seconds_per_token"] * 1e6
        duration = f"{format_duration(total)}, {per_million:.3g} s per 1M tokens"
    lines.append(f"time         {duration} (with evaluation; measured on this machine in a few steps)")
    if 0 < len(finished) < plan["runs"]:
        left = sum(cell["seconds"] for cell in plan["cells"] if cell["name"] not in finished)
        lines.append(f"             {format_duration(left)} of it are left")
    if plan["cost"] and (costs := describe_costs([plan["cost"]])):
        lines.append(f"energy       {costs}")
    if estimate["unmeasured"]:
        lines.append(f"             runs whose speed is unknown count as similar ones: {estimate['unmeasured']}")
    if plan["memory_bytes"]:
        lines.append(f"process      about {plan['memory_bytes'] / 2**20:,.0f} MiB of memory in the largest one")
    return lines


def interval_lines(configs: Sequence[Config], cells: Sequence[Json]) -> list[str]:
    """Returns a line on the interval that a design is expected to give, if its study fits a law of N and D."""
    from kleiber.studies.study import build_study

    study = build_study(configs[0])
    if configs[0]["design"] is None or study is None or set(study.law_inputs()) != {"N", "D"}:
        return []
    return [f"interval     {describe_interval(configs[0]['design'].get('law'), cells)}"]


def describe_interval(law: str | Mapping[str, float] | None, cells: Sequence[Json]) -> str:
    """Describes the expected 90 % interval of the loss at 10 times the largest planned compute.

    law    law to assume, as in `planning_law`
    cells  of the estimate; the end of each branch is a point
    """
    from kleiber.studies.designs.isoflop import planning_law
    from kleiber.studies.laws.allocation import Noise, expected_half_width

    rows = [
        (end["active"], end["tokens"], trunk, end["flops_per_token"])
        for trunk, cell in enumerate(cells)
        for end in cell["ends"]
    ]
    N, D, trunks, flops = np.array(rows, dtype=np.float64).T
    target, noise = EXTRAPOLATION * float((D * flops).max()), Noise()
    half = expected_half_width(N, D, trunks.astype(np.int64), planning_law(law), target, noise)
    if not np.isfinite(half):
        return f"not identified: these {len(rows)} points of size and tokens cannot determine a law of N and D"
    return (
        f"±{half:.2%} (90%) of the loss at the optimum for {target:.3g} FLOPs, if the assumed law holds and the "
        f"standard deviation over seeds is {noise.s:.2%}"
    )


def num_workers(config: Config) -> int:
    """Returns the number of cells of this config that the launcher runs at once."""
    if "workers" not in config["launcher"]:
        return 1
    cell = Cell(Path(), dict(config), [])
    slots = len(gpu_ids()) if cell.accelerator == "gpu" else available_cores()
    return max(1, min(slots // cell.slots, config["launcher"]["workers"] or slots))


def estimate_costs(runs: Mapping[Path, Config], threads: int | None, describe: bool = False) -> Json:
    """Starts a process that estimates what runs cost, and returns its answer.

    runs      resolved configs by folder; a run may start from another one of them, as if that run were trained
    threads   CPU threads of the process; None leaves PyTorch's default
    describe  adds `description`, lines on the stages of a single run

    Returns `cells` in the order of `runs`, `memory_bytes`, `unmeasured` (why a run could not be measured, or None),
    `start` (seconds until a process can compute), `threads` of a CPU process, `warnings`, and `description`. Raises
    ConfigError when a run cannot be planned.
    """
    request = {"runs": {str(folder): dict(config) for folder, config in runs.items()}, "describe": describe}
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with activity(f"estimating the cost of {len(runs)} run{'s' if len(runs) > 1 else ''}"):
        done = subprocess.run(
            python_command("kleiber.launch.price_estimate"), env={**safe_environment(), **limits},
            input=json.dumps({**request, "asked": time.time()}), capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        error = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("kleiber: ")
        raise ConfigError(error if done.returncode == ExitCode.BAD_INPUT else f"dry_run failed with an error: {error}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def seconds_per_token(configs: Sequence[Config]) -> list[float]:
    """Measures the training seconds per token of each config. Raises ValueError when they cannot be measured."""
    threads = configs[0]["trainer"].get("threads") or 1  # a cell of a sweep has one
    estimate = estimate_costs({Path(f"{number}"): config for number, config in enumerate(configs)}, threads)
    if estimate["unmeasured"]:
        raise ValueError(f"the training speed on this machine cannot be measured: {estimate['unmeasured']}")
    return [cell["seconds_per_token"] for cell in estimate["cells"]]
