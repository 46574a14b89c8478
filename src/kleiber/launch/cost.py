"""What a run will hold and compute, counted before it is trained: parameters, tokens, FLOPs, evaluated tokens.

Stages are laid out as a run lays them out, on its real data, with our models on PyTorch's meta device: they have shapes
and no weights. The numbers are those that summary.json will record. Nothing is trained or timed here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from kleiber.config.budget import quantity
from kleiber.config.instantiate import build
from kleiber.models.counting import Parameters, count_parameters, training_flops
from kleiber.runs.plan import add_heads, build_model
from kleiber.runs.run import lay_out
from kleiber.runs.stage import leave_heads
from kleiber.runs.stage_tree import Stage, Tree
from kleiber.types.contracts import Corpus, Task


@dataclass(frozen=True)
class StageCost:
    """One stage of a run.

    parameters   of the model with its heads, and with the adapter that is trained
    steps        optimizer steps of its own, of `batch_tokens` tokens each
    evaluated    tokens that are scored before, during and after the stage
    total        training tokens since the root of the tree, as in summary.json
    leaf         whether no other stage goes on from it
    full_rows    whether every row holds `context` tokens, so that none is padded
    """

    name: str
    parameters: Parameters
    steps: int
    batch_tokens: int
    flops_per_token: float
    evaluated: float
    total: int
    leaf: bool
    full_rows: bool

    @property
    def tokens(self) -> int:
        """Training tokens of its own."""
        return self.steps * self.batch_tokens

    @property
    def flops(self) -> float:
        """Training FLOPs of its own."""
        return self.tokens * self.flops_per_token

    @property
    def flops_per_step(self) -> float:
        return self.batch_tokens * self.flops_per_token


class Models:
    """Models without weights by config and vocabulary, each built once."""

    def __init__(self) -> None:
        self.built: dict[str, Any] = {}

    def __call__(self, cfg: DictConfig, corpus: Corpus, outputs: dict[str, int]) -> Any:
        """A model of its own, with the heads of `outputs`.

        One of Hugging Face's has weights: what it attends to, and its output layer, are found by running it.
        """
        node: Any = OmegaConf.to_container(cfg.model, resolve=True)
        key = json.dumps([node, corpus.tokenizer.vocab_size], sort_keys=True)
        if key not in self.built:
            with torch.device("cpu" if node["_target_"].endswith(".HFModel") else "meta"):
                self.built[key] = build_model(cfg, corpus, {})
        model = copy.deepcopy(self.built[key])
        with torch.device("meta"):
            add_heads(model, outputs)
        return model


def stages_of(config: Mapping[str, Any], hardware: Any, models: Models | None = None) -> list[Stage]:
    """The stages of a resolved config; without `models` each has a model with weights, and a micro-batch.

    Raises ValueError where they do not fit its data.
    """
    return lay_out(OmegaConf.create(dict(config)), hardware, models)


def cost_of_stages(stages: list[Stage], hardware: Any, models: Models) -> list[StageCost]:
    """The cost of every stage, parents first."""
    tree = Tree(stages, hardware=hardware, folder=None, loggers=[], done={})  # type: ignore[arg-type]
    parents = {stage.parent for stage in stages}
    totals: dict[str, int] = {}
    found = []
    for stage in stages:
        plan, objective = stage.plan, stage.plan.objective
        model = models(stage.config, plan.corpus, plan.outputs)
        if stage.config.adapter is not None:
            build(stage.config.adapter).apply(model, stage.config.seed)
        leave_heads(model, objective)
        flops = training_flops(model, plan.row_tokens, objective.outputs)
        before = 0 if stage.parent is None or stage.continues else totals[stage.parent]
        totals[stage.name] = before + plan.tokens
        found.append(
            StageCost(
                name=stage.name,
                parameters=count_parameters(model),
                steps=stage.steps,
                batch_tokens=plan.batch_tokens,
                flops_per_token=flops,
                evaluated=evaluated_tokens(tree, stage),
                total=totals[stage.name],
                leaf=stage.name not in parents,
                full_rows=not plan.corpus.train.padded,
            )
        )
    return found


def evaluated_tokens(tree: Tree, stage: Stage) -> float:
    """Tokens that `callbacks.evaluate` scores around the steps of a stage."""
    settings, plan = stage.config.eval, stage.plan
    around = tree.around(stage)
    others = [*around.earlier, *around.later]
    most = None if settings.tokens is None else round(quantity(settings.tokens))
    full, watch = (partial(held_out_tokens, tokens=n) for n in (most, round(quantity(settings.watch_tokens))))
    first = stage.branch_step if stage.continues else 0
    every = max(1, plan.steps // 4) if settings.every_steps is None else settings.every_steps
    due = (plan.stop_step - 1) // every - first // every if every else 0
    own, everything, watched = full(around.own), full([*around.own, *others]), watch(around.earlier)
    tokens = due * (own + watched) + everything + watched
    if tree.from_weights and not first:
        tokens += watched + (0 if stage.parent else everything)  # of a later stage the start is the end before it
    if around.earlier:
        switches = sum(first < 2**power <= plan.stop_step for power in range(plan.stop_step.bit_length()))
        tokens += switches * watch([*around.own, *others])
    return tokens


def held_out_tokens(tasks: list[Task], tokens: int | None) -> float:
    """Tokens of the held-out samples that a score on `tokens` targets of each task reads."""
    return float(sum(task.held_out.first(tokens).num_tokens for task in tasks))
