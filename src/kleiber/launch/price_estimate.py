"""Estimates what planned runs cost on this machine: the process that `kleiber.launch.price` starts.

`python -m kleiber.launch.price_estimate` reads a request from standard input and prints the answer as its last line.
Parameters, tokens and FLOPs are counted for every run. Speed is measured for the smallest, a middle and the largest run
of each kind and interpolated between them. Counting and measuring a single run is in `kleiber.launch.run_cost`. All
files it writes are in a temporary folder.
"""

from __future__ import annotations

import kleiber.launch.preload  # noqa: F401  # isort: skip  (first, as in a cell: imports are not part of a run's time)

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from kleiber.config.errors import ExitCode, Status
from kleiber.config.instantiate import build
from kleiber.config.stages import is_chain, quantity, stage_names, starts_from_weights, trains_tokenizer
from kleiber.launch import process
from kleiber.launch.run_cost import Models, Speed, StageCost, cost_of_stages, key_of, measure, shortened, stages_of
from kleiber.records.folder import status, write_config
from kleiber.records.summary import write_json
from kleiber.runs.plan import describe_stages
from kleiber.runs.run import keep_tokenizer
from kleiber.types import Config, Json

MEASURING = 40.0  # seconds after which no further run is measured
IRRELEVANT = ("seed", "name", "root", "study", "design", "experiment", "launcher", "logger", "resume", "dry_run")


def answer(request: Json) -> Json:
    """The answer that `kleiber.launch.price.ask` returns."""
    ready = time.time()
    with tempfile.TemporaryDirectory(prefix="kleiber-price-") as scratch:
        prices = Prices(request["runs"], Path(scratch).resolve())
        description = prices.count(request["describe"])
        prices.measure()
        return {
            "cells": [prices.cell(number) for number in range(len(prices.configs))],
            "memory_bytes": max((speed.memory_bytes for speed in prices.speeds.values()), default=None),
            "unmeasured": prices.unmeasured,
            "start": max(0.0, ready - request.get("asked", ready)),
            "description": description,
        }


class Prices:
    """Costs and speeds of planned runs, which are resolved configs by folder.

    configs     of the runs. A start point that is not trained yet is replaced by a folder in `scratch` that reads as a
                finished run
    planned     configs of these start points, by their folders in `scratch`
    costs       of the stages of each run
    speeds      of the measured runs, by position in `configs`
    unmeasured  why a run could not be measured; None when all could
    """

    def __init__(self, runs: Mapping[str, Config], scratch: Path) -> None:
        self.scratch = scratch
        positions: dict[Path, int] = {}
        text = json.dumps(list(runs.values()))
        for number, folder in enumerate(runs):
            if json.dumps(folder)[:-1] in text and status(Path(folder)) != Status.FINISHED:
                place = scratch / f"planned{number}"
                text = text.replace(json.dumps(folder)[:-1], json.dumps(str(place))[:-1])
                positions[place] = number
        self.configs: list[Json] = json.loads(text)
        self.planned = {place: self.configs[number] for place, number in positions.items()}
        self.costs: list[list[StageCost]] = []
        self.speeds: dict[int, Speed] = {}
        self.unmeasured: str | None = None

    def count(self, describing: bool) -> list[str]:
        """Counts every run; returns lines that describe the stages of a single run, if asked."""
        models = Models()
        for folder, config in self.planned.items():
            self.stand_in(folder, config)
        description: list[str] = []
        counted: dict[str, list[StageCost]] = {}
        for config in self.configs:
            key = self.key(config)
            if key not in counted:
                hardware = build(DictConfig(config["trainer"]))
                hardware.prepare()
                stages = stages_of(config, hardware, None if describing else models)
                counted[key] = cost_of_stages(stages, hardware, models)
                description = describe_stages(stages) if describing else []
            self.costs.append(counted[key])
        return description

    def stand_in(self, folder: Path, config: Config) -> None:
        """Writes a folder that reads as a finished run, with the tokenizer it will have and without weights."""
        write_config(folder, config, [])
        stages = [{"name": name, "status": Status.FINISHED} for name in stage_names(config)]
        write_json(folder / "summary.json", {"status": Status.FINISHED, "stages": stages})
        if trains_tokenizer(config):
            corpus = build(DictConfig(config["data"])).prepare(config["model"]["context"])
            keep_tokenizer(corpus.tokenizer, folder)

    def key(self, config: Config) -> str:
        """Equal for runs with equal counts: those that differ in seed or learning rate, or in those of their bases."""
        kept = {key: value for key, value in config.items() if key not in IRRELEVANT}
        optimizer = {key: value for key, value in config["optimizer"].items() if key != "lr"}
        text = json.dumps({**kept, "optimizer": optimizer}, sort_keys=True)
        for folder, base in self.planned.items():
            if str(folder) in text:
                text = text.replace(str(folder), self.key(base))
        return text

    def measure(self) -> None:
        """Measures the largest run of every kind, then the smallest and a middle one, while there is time."""
        began = time.monotonic()
        for number in self.to_measure():
            if self.speeds and time.monotonic() - began > MEASURING:
                break
            try:
                self.speeds[number] = self.measured(number)
            except (ValueError, RuntimeError) as error:
                self.unmeasured = str(error)

    def to_measure(self) -> list[int]:
        """Positions of the runs to measure, in order: the largest of each kind, the smallest, a middle one."""
        kinds = self.kinds()
        by_cost = sorted(kinds.values(), key=lambda members: -sum(self.size(number) for number in members))
        positions: list[int] = []
        for place in ("largest", "smallest", "middle"):
            for members in by_cost:
                ordered = sorted(members, key=self.size)
                number = ordered[{"largest": -1, "smallest": 0, "middle": len(ordered) // 2}[place]]
                if all(self.size(number) != self.size(other) for other in positions if other in members):
                    positions.append(number)
        return positions

    def kinds(self) -> dict[str, list[int]]:
        """Positions of runs by kind."""
        members: dict[str, list[int]] = {}
        for number, config in enumerate(self.configs):
            members.setdefault(self.kind(number, config), []).append(number)
        return members

    def kind(self, number: int, config: Config) -> str:
        """Equal for runs whose configs differ in numbers alone, so that speed can be interpolated between them."""
        node = {key: value for key, value in config.items() if key not in IRRELEVANT}
        node["init"] = {**(config.get("init") or {}), "path": None}
        if all(cost.full_rows for cost in self.costs[number]):  # then the cost of a row does not depend on the data
            node["data"] = None
            if is_chain(config):
                chain = {name: {**(stage or {}), "data": None} for name, stage in config["stages"]["chain"].items()}
                node["stages"] = {**config["stages"], "chain": chain}
        return json.dumps(without_numbers(node), sort_keys=True)

    def size(self, number: int) -> float:
        """FLOPs of a step, summed over the stages."""
        return sum(cost.flops_per_step for cost in self.costs[number])

    def measured(self, number: int) -> Speed:
        """Trains a few steps of a run in the scratch folder. Raises ValueError or RuntimeError where it cannot."""
        config, folder = self.configs[number], self.scratch / f"measured{number}"
        self.train_start(config)
        short = shortened(config, self.costs[number], folder)
        hardware, models = build(DictConfig(short["trainer"])), Models()
        return measure(short, cost_of_stages(stages_of(short, hardware, models), hardware, models), folder)

    def train_start(self, config: Config) -> None:
        """Trains two steps of the planned run from which `config` starts, so that there are weights to start from."""
        path = Path(str((config.get("init") or {}).get("path")))
        for folder in (path, path.parent):
            if folder in self.planned and not (folder / "stages").is_dir():
                base = self.planned[folder]
                self.train_start(base)
                (folder / "summary.json").unlink()
                costs = self.costs[self.configs.index(base)]
                short = shortened(base, costs, folder)
                short["trainer"]["max_steps"] = 2
                measure(short, costs, folder)

    def cell(self, number: int) -> Json:
        """The cost of one run; seconds are None where nothing could be measured."""
        costs = self.costs[number]
        return {
            "params": costs[-1].parameters.total,
            "active": costs[-1].parameters.active,
            "flops": sum(cost.flops for cost in costs),
            "tokens": sum(cost.tokens for cost in costs),
            "ends": [
                {"active": cost.parameters.active, "tokens": cost.total, "flops_per_token": cost.flops_per_token}
                for cost in costs
                if cost.leaf
            ],
            **self.seconds(number),
        }

    def seconds(self, number: int) -> dict[str, float | None]:
        """Seconds of a run, and of training per token, by the speeds of its kind."""
        if not self.speeds:
            return {"seconds": None, "seconds_per_token": None}
        config, costs = self.configs[number], self.costs[number]
        speeds, total, training = self.nearest(number), 0.0, 0.0
        evaluation = float(np.mean([speed.evaluation for speed in speeds]))
        once = float(np.mean([speed.once for speed in speeds]))
        for cost in costs:
            step = step_seconds(cost.flops_per_step, key_of(config, cost.name), speeds)
            training += cost.steps * step
            total += cost.evaluated * step / cost.batch_tokens * evaluation
            total += once
        return {"seconds": total + training, "seconds_per_token": training / sum(cost.tokens for cost in costs)}

    def nearest(self, number: int) -> list[Speed]:
        """The speeds of runs of the same kind; where none was measured, of runs of the same model, or of all runs."""

        def kind(other: int) -> str:
            return self.kind(other, self.configs[other])

        def model(other: int) -> tuple[str, bool]:
            return self.configs[other]["model"]["_target_"], starts_from_weights(self.configs[other])

        own_kind, own_model = kind(number), model(number)
        same_kind = [other for other in self.speeds if kind(other) == own_kind]
        same_model = [other for other in self.speeds if model(other) == own_model]
        return [self.speeds[other] for other in same_kind or same_model or self.speeds]


def step_seconds(flops: float, key: str, speeds: Sequence[Speed]) -> float:
    """Seconds of a step of `flops` FLOPs: FLOP/s are interpolated over the logarithm of a step's FLOPs."""
    points: dict[float, list[float]] = {}
    for speed in speeds:
        for name in speed.step if key not in speed.step else (key,):
            points.setdefault(speed.flops_per_step[name], []).append(speed.flops_per_step[name] / speed.step[name])
    x, y = np.log([(at, np.median(values)) for at, values in sorted(points.items())]).T
    return flops / float(np.exp(np.interp(np.log(flops), x, y)))


def without_numbers(value: Any) -> Any:
    """The structure of a config: numbers, null, and text that is a quantity become None."""
    if isinstance(value, Mapping):
        return {key: without_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [without_numbers(item) for item in value]
        return None if all(item is None for item in items) else items
    if isinstance(value, str):
        try:
            quantity(value)
        except ValueError:
            return value
        return None
    return value if isinstance(value, bool) else None


def main() -> int:
    """Answers the request on standard input; returns the exit code."""
    request = json.load(sys.stdin)
    try:
        estimate = answer(request)
    except Exception as error:
        return process.report(error)
    print(json.dumps(estimate))
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
