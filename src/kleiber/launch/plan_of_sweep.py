"""Prices of runs that are planned and not trained: counts of every run, and its seconds by measured speeds.

Costs are counted for every run (`cost`); the speed is measured for the smallest, a middle and the largest run of each
kind (`speed`) and interpolated between them. What is written lies in a temporary folder.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from kleiber.config.budget import quantity
from kleiber.config.instantiate import build
from kleiber.config.stages import from_weights, is_chain, stage_names, trains_tokenizer
from kleiber.launch.cost import Models, StageCost, cost_of_stages, stages_of
from kleiber.launch.speed import Speed, key_of, measure, shortened
from kleiber.records.folder import status, write_config
from kleiber.records.summary import write_json
from kleiber.runs.plan import describe
from kleiber.runs.run import keep_tokenizer

MEASURING = 40.0  # seconds after which no further run is measured
ELSEWHERE = ("seed", "name", "root", "study", "design", "experiment", "launcher", "logger", "resume", "dry_run")


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What `ask` returns, computed in this process."""
    ready = time.time()
    with tempfile.TemporaryDirectory(prefix="kleiber-price-") as scratch:
        prices = Prices(request["runs"], Path(scratch).resolve())
        words = prices.count(request["words"])
        prices.measure()
        return {
            "cells": [prices.cell(number) for number in range(len(prices.configs))],
            "memory_bytes": max((one.memory_bytes for one in prices.speeds.values()), default=None),
            "unmeasured": prices.unmeasured,
            "start": max(0.0, ready - request.get("asked", ready)),
            "words": words,
        }


class Prices:
    """Counts and speeds of a list of runs.

    configs   with every start point that is not trained yet moved to the scratch folder, where it stands as finished
    costs     stages of each run
    speeds    by the numbers of the runs that were measured
    """

    def __init__(self, runs: Mapping[str, Mapping[str, Any]], scratch: Path) -> None:
        self.scratch = scratch
        self.planned: dict[Path, dict[str, Any]] = {}
        text = json.dumps(list(runs.values()))
        for number, folder in enumerate(runs):
            if json.dumps(folder)[:-1] in text and status(Path(folder)) != "finished":
                place = scratch / f"planned{number}"
                text = text.replace(json.dumps(folder)[:-1], json.dumps(str(place))[:-1])
                self.planned[place] = {"number": number}
        self.configs: list[dict[str, Any]] = json.loads(text)
        self.planned = {place: self.configs[told["number"]] for place, told in self.planned.items()}
        self.costs: list[list[StageCost]] = []
        self.speeds: dict[int, Speed] = {}
        self.unmeasured: str | None = None

    def count(self, words: bool) -> list[str]:
        """Counts every run; of one run, returns its stages in words if asked."""

        models = Models()
        for folder, config in self.planned.items():
            self.stand_in(folder, config)
        told: list[str] = []
        known: dict[str, list[StageCost]] = {}
        for config in self.configs:
            key = self.key(config)
            if key not in known:
                hardware = build(DictConfig(config["trainer"]))
                hardware.prepare()
                stages = stages_of(config, hardware, None if words else models)
                known[key] = cost_of_stages(stages, hardware, models)
                told = describe(stages) if words else []
            self.costs.append(known[key])
        return told

    def stand_in(self, folder: Path, config: Mapping[str, Any]) -> None:
        """A folder that reads as that of a finished run, with the tokenizer that it will have and without weights."""

        write_config(folder, config, [])
        stages = [{"name": name, "status": "finished"} for name in stage_names(config)]
        write_json(folder / "summary.json", {"status": "finished", "stages": stages})
        if trains_tokenizer(config):
            corpus = build(DictConfig(config["data"])).prepare(config["model"]["context"])
            keep_tokenizer(corpus.tokenizer, folder)

    def key(self, config: Mapping[str, Any]) -> str:
        """The same for runs whose counts are the same: they differ in seed and learning rate, or start from such."""
        kept = {key: value for key, value in config.items() if key not in ELSEWHERE}
        optimizer = {key: value for key, value in config["optimizer"].items() if key != "lr"}
        text = json.dumps({**kept, "optimizer": optimizer}, sort_keys=True)
        for folder, base in self.planned.items():
            if str(folder) in text:
                text = text.replace(str(folder), self.key(base))
        return text

    def measure(self) -> None:
        """Measures the largest run of every kind, then the smallest and a middle one, while there is time."""
        began = time.monotonic()
        for number in self.chosen():
            if self.speeds and time.monotonic() - began > MEASURING:
                break
            try:
                self.speeds[number] = self.measured(number)
            except (ValueError, RuntimeError) as error:
                self.unmeasured = str(error)

    def chosen(self) -> list[int]:
        kinds = self.kinds()
        by_cost = sorted(kinds.values(), key=lambda members: -sum(self.size(number) for number in members))
        places = {"largest": -1, "smallest": 0, "middle": None}
        found: list[int] = []
        for place in places.values():
            for members in by_cost:
                ordered = sorted(members, key=self.size)
                number = ordered[len(ordered) // 2 if place is None else place]
                if all(self.size(number) != self.size(one) for one in found if one in members):
                    found.append(number)
        return found

    def kinds(self) -> dict[str, list[int]]:
        """Numbers of runs by what their configs have in common but for numbers."""
        found: dict[str, list[int]] = {}
        for number, config in enumerate(self.configs):
            found.setdefault(self.kind(number, config), []).append(number)
        return found

    def kind(self, number: int, config: Mapping[str, Any]) -> str:
        node = {key: value for key, value in config.items() if key not in ELSEWHERE}
        node["init"] = {**(config.get("init") or {}), "path": None}
        if all(cost.full_rows for cost in self.costs[number]):  # then a row costs the same whatever its text
            node["data"] = None
            if is_chain(config):
                chain = {name: {**(own or {}), "data": None} for name, own in config["stages"]["chain"].items()}
                node["stages"] = {**config["stages"], "chain": chain}
        return json.dumps(without_numbers(node), sort_keys=True)

    def size(self, number: int) -> float:
        """FLOPs of one step of every stage."""
        return sum(cost.flops_per_step for cost in self.costs[number])

    def measured(self, number: int) -> Speed:

        config, folder = self.configs[number], self.scratch / f"measured{number}"
        self.train_start(config)
        short = shortened(config, self.costs[number], folder)
        hardware, models = build(DictConfig(short["trainer"])), Models()
        return measure(short, cost_of_stages(stages_of(short, hardware, models), hardware, models), folder)

    def train_start(self, config: Mapping[str, Any]) -> None:
        """Trains a few steps of the planned run that this one starts from, so that its weights are there."""

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

    def cell(self, number: int) -> dict[str, Any]:
        """The price of one run; seconds are None where nothing could be measured."""
        costs = self.costs[number]
        times = self.seconds(number)
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
            **times,
        }

    def seconds(self, number: int) -> dict[str, Any]:
        """Seconds of a run, and of training per token, by the speeds of its kind."""

        if not self.speeds:
            return {"seconds": None, "seconds_per_token": None}
        config, costs = self.configs[number], self.costs[number]
        speeds, total, training = self.nearest(number), 0.0, 0.0
        for cost in costs:
            step = step_seconds(cost.flops_per_step, key_of(config, cost.name), speeds)
            training += cost.steps * step
            total += cost.evaluated * step / cost.batch_tokens * float(np.mean([one.evaluation for one in speeds]))
            total += float(np.mean([one.once for one in speeds]))
        return {"seconds": total + training, "seconds_per_token": training / sum(cost.tokens for cost in costs)}

    def nearest(self, number: int) -> list[Speed]:
        """The speeds of the runs of the same kind; of those of the same model, or of all, where none was measured."""
        config = self.configs[number]
        own = self.kind(number, config)
        model = config["model"]["_target_"], from_weights(config)
        kinds = {one: self.kind(one, self.configs[one]) for one in self.speeds}
        same = [one for one in self.speeds if kinds[one] == own]
        like = [
            one
            for one in self.speeds
            if (self.configs[one]["model"]["_target_"], from_weights(self.configs[one])) == model
        ]
        return [self.speeds[one] for one in same or like or self.speeds]


def step_seconds(flops: float, key: str, speeds: Sequence[Speed]) -> float:
    """Seconds of a step of `flops` FLOPs: FLOP/s are interpolated in the logarithm of a step's FLOPs."""
    points: dict[float, list[float]] = {}
    for one in speeds:
        for name in one.step if key not in one.step else (key,):
            points.setdefault(one.flops_per_step[name], []).append(one.flops_per_step[name] / one.step[name])
    x, y = np.log([(at, np.median(values)) for at, values in sorted(points.items())]).T
    return flops / float(np.exp(np.interp(np.log(flops), x, y)))


def without_numbers(value: Any) -> Any:
    """The structure of a config: numbers, nothing, and text that is a quantity are all alike."""
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
