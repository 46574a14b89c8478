"""Estimates what planned runs cost on this machine, in the process that `kleiber.launch.price` starts.

`python -m kleiber.launch.price_estimate` reads a request from standard input and prints its answer as the last line.
Parameters, tokens and FLOPs are counted for every run. Training speed is measured for the smallest, a middle and the
largest run of each kind, and interpolated for the other runs; where time runs out, a run has the speed of others with
its class of model and of privacy. `kleiber.launch.run_cost` counts and measures a single run. All files are temporary.
"""

from __future__ import annotations

import kleiber.launch.preload  # noqa: F401  # isort: skip  (first, so that imports do not count as time of a run)

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig

from kleiber.config.errors import ExitCode, Status, exit_on_signals
from kleiber.config.foreign import permit_config
from kleiber.config.stages import is_chain, quantity, stage_names, starts_from_weights, trains_tokenizer
from kleiber.config.targets import build
from kleiber.launch import process
from kleiber.launch.run_cost import (
    Models,
    StageCost,
    UnknownSpeed,
    count_costs,
    measure,
    shorten_config,
    stage_key,
)
from kleiber.launch.speed import Speed, step_seconds
from kleiber.records.folder import status, summary_facts, write_config
from kleiber.records.locks import scratch_folder
from kleiber.records.summary import StageRecord, Summary
from kleiber.runs.banner import reading_warnings
from kleiber.runs.dry_run import describe_stages
from kleiber.runs.recorded_config import keep_tokenizer
from kleiber.runs.run import plan_stages
from kleiber.runs.stage_tree import Stage
from kleiber.training.trainer import Local
from kleiber.types import Config, Json

MEASURING_SECONDS = 40.0  # after which no further run is measured, but for the first of a class of models or privacy
# Keys that do not change what a run costs.
WITHOUT_COST = ("seed", "name", "root", "study", "design", "experiment", "launcher", "logger", "resume", "dry_run")


def answer_request(request: Json) -> Json:
    """Returns what `kleiber.launch.price.estimate_costs` returns for a request."""
    ready = time.time()
    for config in request["runs"].values():
        permit_config(config)
    with scratch_folder("kleiber-price-") as scratch:
        prices = Prices(request["runs"], scratch.resolve())
        described = prices.count(request["describe"])
        prices.measure()
        return {
            "cells": [prices.cell(number) for number in range(len(prices.configs))],
            "memory_bytes": max((speed.memory_bytes for speed in prices.speeds.values()), default=None),
            "unmeasured": prices.unmeasured,
            "memory_plan": prices.memory_plan,
            "start": max(0.0, ready - request.get("asked", ready)),
            "threads": torch.get_num_threads(),
            **described,
        }


class Prices:
    """Costs and speeds of planned runs.

    configs     resolved configs of the runs. The path of a start point that is not trained yet is replaced by that of a
                folder in `scratch` which looks like a finished run
    planned     configs of these start points, by their folder in `scratch`
    costs       costs of the stages of each run, in the order of `configs`
    speeds      speeds of the measured runs, by position in `configs`
    unmeasured  why a run could not be measured; None when all could be
    memory_plan  that of the stage that needs most, of a single run: bytes by part, rows and devices
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
        self.configs: list[Json] = [self._with_written_data(config) for config in json.loads(text)]
        self.planned = {place: self.configs[number] for place, number in positions.items()}
        self.costs: list[list[StageCost]] = []
        self.speeds: dict[int, Speed] = {}
        self.unmeasured: str | None = None
        self.memory_plan: Json | None = None

    def _with_written_data(self, config: Json) -> Json:
        """The config with real text in place of text that planned runs will write: a token of it costs the same."""
        models = config["data"].get("models") or []
        if not any(str(path).startswith(f"{self.scratch}{os.sep}") for path in models):
            return config
        return {**config, "data": config["data"]["data"]}

    def count(self, describing: bool) -> dict[str, list[str]]:
        """Counts parameters, tokens and FLOPs of every run; returns warnings and, if `describing`, lines on a run."""
        models = Models()
        for folder, config in self.planned.items():
            self.write_placeholder(folder, config)
        described: dict[str, list[str]] = {"description": [], "warnings": []}
        counted: dict[str, list[StageCost]] = {}
        for config in self.configs:
            key = self.count_key(config)
            if key not in counted:
                absent = is_absent(config)
                hardware = build(DictConfig({**config["trainer"], **({"accelerator": "cpu"} if absent else {})}))
                hardware.prepare()
                stages = plan_stages(config, hardware, None if describing and not absent else models)
                counted[key] = count_costs(stages, hardware, models)
                if describing:
                    lines = self.plan_memory(config, stages, hardware)
                    described["description"] = [*describe_stages(stages), *lines]
                described["warnings"] += reading_warnings(stages)
            self.costs.append(counted[key])
        return described

    def plan_memory(self, config: Config, stages: Sequence[Stage], hardware: Local) -> list[str]:
        """Plans the memory of the stages of a run; returns a line on the largest plan, or why there is none."""
        from kleiber.runs.memory_plan import MemoryPlan, micro_rows, plan_memory

        device, devices = config["trainer"].get("accelerator", "cpu"), hardware.devices
        for stage in stages:
            stage.plan.micro_batch = micro_rows(stage.config, stage.plan, devices)
        answers = [plan_memory(stage.config, stage.plan, hardware, device) for stage in stages]
        plans = [answer for answer in answers if isinstance(answer, MemoryPlan)]
        reasons = dict.fromkeys(f"memory       not planned: {answer}" for answer in answers if isinstance(answer, str))
        if not plans:
            return [*reasons]
        largest = max(plans, key=lambda plan: plan.total)
        self.memory_plan = {**largest.to_json(), "device": device, "devices": devices}
        return [f"memory       {largest.describe(devices)} (planned)", *reasons]

    def write_placeholder(self, folder: Path, config: Config) -> None:
        """Writes a folder that looks like a finished run, with its tokenizer and without weights."""
        write_config(folder, config, [])
        stages = [StageRecord.untrained(name).to_json() for name in stage_names(config)]
        summary = Summary(folder)
        summary.start(**summary_facts(folder))
        summary.update(status=Status.FINISHED, stages=stages)
        if trains_tokenizer(config):
            corpus = build(DictConfig(config["data"])).prepare(config["model"]["context"])
            keep_tokenizer(corpus.tokenizer, config, folder)

    def count_key(self, config: Config) -> str:
        """Returns a text that is equal for runs with equal counts.

        Such runs differ only in seed or learning rate, their own or those of the runs that they start from.
        """
        kept = {key: value for key, value in config.items() if key not in WITHOUT_COST}
        optimizer = {key: value for key, value in config["optimizer"].items() if key != "lr"}
        text = json.dumps({**kept, "optimizer": optimizer}, sort_keys=True)
        for folder, base in self.planned.items():
            if str(folder) in text:
                text = text.replace(str(folder), self.count_key(base))
        return text

    def measure(self) -> None:
        """Measures the largest run of every kind, then the smallest and a middle one, while there is time.

        Of each `model_kind` a run is measured in any case, since no other run has its speed. Raises ConfigError for a
        run that fails.
        """
        started = time.monotonic()
        for number in self.runs_to_measure():
            measured = {self.model_kind(other) for other in self.speeds}
            if is_absent(self.configs[number]):
                self.unmeasured = "this machine has no GPU"
                continue
            if time.monotonic() - started > MEASURING_SECONDS and self.model_kind(number) in measured:
                continue
            try:
                self.speeds[number] = self.measure_run(number)
            except UnknownSpeed as reason:
                self.unmeasured = str(reason)

    def runs_to_measure(self) -> list[int]:
        """Returns positions in the order of measuring: the largest run of each kind, the smallest, a middle one."""
        by_cost = sorted(self.by_kind().values(), key=lambda members: -sum(self.size(number) for number in members))
        positions: list[int] = []
        for place in ("largest", "smallest", "middle"):
            for members in by_cost:
                ordered = sorted(members, key=self.size)
                number = ordered[{"largest": -1, "smallest": 0, "middle": len(ordered) // 2}[place]]
                if all(self.size(number) != self.size(other) for other in positions if other in members):
                    positions.append(number)
        return positions

    def by_kind(self) -> dict[str, list[int]]:
        """Returns the positions of the runs of each kind."""
        members: dict[str, list[int]] = {}
        for number, config in enumerate(self.configs):
            members.setdefault(self.kind(number, config), []).append(number)
        return members

    def kind(self, number: int, config: Config) -> str:
        """Returns a text that is equal for runs whose configs differ only in numbers.

        Speed is interpolated between runs of one kind.
        """
        node = {key: value for key, value in config.items() if key not in WITHOUT_COST}
        node["init"] = {**(config.get("init") or {}), "path": None}
        if all(cost.full_rows for cost in self.costs[number]):  # a row then costs the same on any data
            node["data"] = None
            if is_chain(config):
                chain = {name: {**(stage or {}), "data": None} for name, stage in config["stages"]["chain"].items()}
                node["stages"] = {**config["stages"], "chain": chain}
        return json.dumps(without_numbers(node), sort_keys=True)

    def size(self, number: int) -> float:
        """Returns the FLOPs of one optimizer step of each stage, summed over the stages of run `number` (from 0)."""
        return sum(cost.flops_per_step for cost in self.costs[number])

    def measure_run(self, number: int) -> Speed:
        """Trains a few steps of a run in the scratch folder. Raises what `measure` raises."""
        config, folder = self.configs[number], self.scratch / f"measured{number}"
        self.train_start_point(config)
        short = shorten_config(config, self.costs[number], folder)
        write_config(folder, short, [])  # from which a later stage opens an earlier one
        hardware, models = build(DictConfig(short["trainer"])), Models()
        stages = plan_stages(short, hardware, models)
        return measure(short, count_costs(stages, hardware, models), folder, config["trainer"].get("devices") or 1)

    def train_start_point(self, config: Config) -> None:
        """Trains two steps of the planned run from which `config` starts, so that its folder contains weights."""
        path = Path(str((config.get("init") or {}).get("path")))
        for folder in (path, path.parent):
            if folder in self.planned and not (folder / "stages").is_dir():
                base = self.planned[folder]
                self.train_start_point(base)
                (folder / "summary.json").unlink()
                costs = self.costs[self.configs.index(base)]
                short = shorten_config(base, costs, folder)
                short["trainer"]["max_steps"] = 2
                measure(short, costs, folder)

    def cell(self, number: int) -> Json:
        """Returns the cost of one run; its seconds are None when no run could be measured."""
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
        """Returns the seconds of a run, and its training seconds per token, from the speeds of runs of its kind."""
        if not self.speeds:
            return {"seconds": None, "seconds_per_token": None}
        config, costs = self.configs[number], self.costs[number]
        speeds, total, training = self.similar_speeds(number), 0.0, 0.0
        evaluation = float(np.mean([speed.evaluation for speed in speeds]))
        once = float(np.mean([speed.once for speed in speeds]))
        for cost in costs:
            step = step_seconds(cost.flops_per_step, stage_key(config, cost.name), speeds)
            training += cost.steps * step
            total += cost.evaluated * step / cost.batch_tokens * evaluation
            total += once
        return {"seconds": total + training, "seconds_per_token": training / sum(cost.tokens for cost in costs)}

    def similar_speeds(self, number: int) -> list[Speed]:
        """Returns the speeds of runs of the same kind; if there are none, of the same model, else of all runs."""
        kind, model = self.kind(number, self.configs[number]), self.model_kind(number)
        same_kind = [other for other in self.speeds if self.kind(other, self.configs[other]) == kind]
        same_model = [other for other in self.speeds if self.model_kind(other) == model]
        return [self.speeds[other] for other in same_kind or same_model or self.speeds]

    def model_kind(self, number: int) -> tuple[str, str | None, bool]:
        """Returns the classes of a run's model and of its privacy, and whether it starts from trained weights.

        DP-SGD has a pass for each sample of a step, so a step takes longer at the same FLOPs.
        """
        config = self.configs[number]
        privacy = (config.get("privacy") or {}).get("_target_")
        return config["model"]["_target_"], privacy, starts_from_weights(config)


def is_absent(config: Config) -> bool:
    """Whether a run needs a GPU, and this machine has none."""
    return (config.get("trainer") or {}).get("accelerator") == "gpu" and not torch.cuda.is_available()


def without_numbers(value: object) -> object:
    """Returns a config in which numbers, quantities such as "1M" and lists of them are replaced by None."""
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
    """Answers the request on standard input, and returns the exit code."""
    try:
        estimate = answer_request(json.load(sys.stdin))
    except Exception as error:
        return process.print_error(error)
    sys.stdout.write(json.dumps(estimate))
    return ExitCode.DONE


if __name__ == "__main__":
    exit_on_signals()
    sys.exit(main())
