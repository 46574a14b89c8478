"""The plan of a stage: its data, model, number of steps, micro-batch and FLOPs. Planning writes and trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from kleiber.config.stages import Budget, has_pretrained_weights, quantity
from kleiber.config.targets import build
from kleiber.models.counting import Parameters, count_parameters, training_flops, without_weights
from kleiber.models.hf_config import model_folder
from kleiber.nn.sharding import local
from kleiber.optimizers.adamw import Optimizer
from kleiber.optimizers.schedules import Schedule
from kleiber.runs.equal_ranks import check_equal
from kleiber.runs.inputs import data_inputs
from kleiber.runs.open import add_heads, build_objective, open_model
from kleiber.runs.start_point import check_same_tokenizer, check_tokenizer_of, distinct_tasks
from kleiber.training.memory import free_memory_bytes
from kleiber.training.trainer import Local
from kleiber.types import Config
from kleiber.types.batch import Batch
from kleiber.types.contracts import Corpus, Objective, Samples, Task
from kleiber.types.model import Model, device_of
from kleiber.types.retention import Retention

if TYPE_CHECKING:
    from kleiber.evals.measure import Measurement
    from kleiber.optimizers.privacy import PrivateSteps

ModelBuilder = Callable[[DictConfig, Corpus, dict[str, int]], Model]


@dataclass
class Plan:
    """Everything that training a stage needs, except its place in the tree of stages.

    context          longest row in tokens
    rows             samples in the global batch of an optimizer step
    micro_batch      samples of each rank in a forward and backward pass; 0 in a plan that only estimates costs
    scored_rows      samples in a forward pass that scores a task
    steps            optimizer steps of the schedule
    stop_step        last step that is trained: `steps`, unless trainer.max_steps is smaller
    flops_per_token  training FLOPs of a token, forward and backward
    world_size       number of ranks
    max_steps        trainer.max_steps
    outputs          number of outputs of each task head of the model, by name
    sides            rows of up to `context` tokens in a sample: 2 for a pair, the answers that an objective lets the
                     model write, otherwise 1
    earlier          tasks that the start point was trained for
    measurements     evaluations during training and after the last step
    privacy          what DP-SGD does in each step; None without it
    """

    corpus: Corpus
    model: Model
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    parameters: Parameters
    context: int
    rows: int
    micro_batch: int
    scored_rows: int
    steps: int
    stop_step: int
    flops_per_token: float
    world_size: int
    max_steps: int | None = None
    outputs: dict[str, int] = field(default_factory=dict)
    sides: int = 1
    earlier: list[Task] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    privacy: PrivateSteps | None = None

    @property
    def batch_tokens(self) -> int:
        """Mean number of tokens in an optimizer step, without padding."""
        return step_tokens(self.corpus.train, self.rows * self.sides // self.corpus.train.sides)

    @property
    def row_tokens(self) -> int:
        """Mean number of tokens in a row, without padding."""
        return row_tokens(self.corpus.train, self.corpus.train.sides)

    @property
    def tokens(self) -> int:
        """Training tokens of the stage up to `stop_step`."""
        return self.stop_step * self.batch_tokens

    @property
    def epochs(self) -> float:
        """Passes over the training samples."""
        return self.stop_step * self.rows / len(self.corpus.train) / self.objective.passes


def make_plan(
    cfg: DictConfig, hardware: Local, before: Plan | None = None, model_of: ModelBuilder | None = None
) -> Plan:
    """Prepares the data of a stage and builds its model, or takes the model of the stage `before`.

    before    plan of the stage before in a chain
    model_of  builds models without weights, for a plan that only estimates costs

    Raises ValueError when batch, context or vocabulary do not fit together.
    """
    context, corpus = int(cfg.model.context), prepare_data(cfg, 1 if model_of else hardware.world_size)
    objective = build_objective(cfg, corpus)
    build_retention(cfg, corpus)
    earlier = [] if before or cfg.init is None else distinct_tasks(build(cfg.init).tasks(cfg, corpus), corpus)
    outputs = dict(before.outputs) if before else {}
    for reader in (*(task.objective for task in earlier), objective):
        outputs |= reader.outputs
    if before is not None:
        check_same_tokenizer(before.corpus, corpus, "stages.chain")
        model = before.model
    else:
        model = build_model(cfg, corpus, {}, hardware) if model_of is None else model_of(cfg, corpus, {})
    objective.check(model)
    if cfg.adapter is not None:
        build(cfg.adapter).check(model)
    add_heads(model, outputs)
    parameters = count_parameters(model)
    sides = objective.answers or corpus.train.sides
    padded = corpus.train.padded and sides == 1  # a pair's two rows are of different lengths
    rows = batch_samples(cfg.batch.tokens, context * sides, hardware.world_size)
    flops = training_flops(with_adapter(cfg, model), row_tokens(corpus.train, corpus.train.sides), objective.outputs)
    tokens = step_tokens(corpus.train, rows * sides // corpus.train.sides)
    steps = Budget(**cfg.budget).num_steps(
        batch_tokens=tokens, active_params=parameters.active, flops_per_token=flops,
        epoch_steps=len(corpus.train) / rows * objective.passes, default_epochs=objective.default_epochs,
    )  # fmt: skip
    share = -(-rows // hardware.world_size)
    micro = 0 if model_of else choose_micro_batch(cfg.batch.micro, share, context, model, hardware, sides, padded)
    return Plan(
        corpus=corpus,
        model=model,
        objective=objective,
        optimizer=build(cfg.optimizer),
        schedule=build(cfg.schedule),
        parameters=parameters,
        context=context,
        rows=rows,
        micro_batch=micro,
        scored_rows=scored_rows(cfg.batch.micro, micro, rows, largest_part(share, hardware, padded)),
        steps=steps,
        stop_step=min(steps, hardware.max_steps or steps),
        flops_per_token=flops,
        world_size=hardware.world_size,
        max_steps=hardware.max_steps,
        outputs=outputs,
        sides=sides,
        earlier=earlier,
        measurements=_plan_evaluations(cfg.evals, model, corpus),
        privacy=_plan_privacy(cfg.get("privacy"), model, objective, corpus, rows, steps),
    )


def _plan_evaluations(nodes: Config | None, model: Model, corpus: Corpus) -> list[Measurement]:
    if not nodes:
        return []
    from kleiber.evals.measure import training_measurements

    return training_measurements(nodes, model, corpus)


def _plan_privacy(
    node: DictConfig | None, model: Model, objective: Objective, corpus: Corpus, rows: int, steps: int
) -> PrivateSteps | None:
    if not node:
        return None
    from kleiber.training.private_step import plan_private_steps

    return plan_private_steps(build(node), model, objective, corpus.train, rows, steps)


def prepare_data(cfg: DictConfig, world_size: int) -> Corpus:
    """Prepares the data of a stage.

    Raises ConfigError where ranks have other data, before they build models of other vocabularies together, and
    ValueError for another tokenizer than that of the Hugging Face folder which `model=hf` wraps.
    """
    corpus: Corpus = build(cfg.data, open_model=open_model).prepare(cfg.model.context)
    if world_size > 1:
        check_equal(data_inputs(corpus), cfg.trainer.get("rank_timeout"))
    if has_pretrained_weights(cfg.model):
        check_tokenizer_of(model_folder(str(cfg.model.path)), corpus, f"model.path={cfg.model.path}")
    return corpus


def with_adapter(cfg: DictConfig, model: Model) -> Model:
    """Returns the model, or a copy without weights that has the adapter of a stage, to count what it trains."""
    if cfg.adapter is None:
        return model
    adapted = without_weights(model)
    build(cfg.adapter).apply(adapted, cfg.seed)
    return adapted


def build_retention(cfg: DictConfig, corpus: Corpus) -> list[Retention]:
    """Builds the retention methods of a stage's config. Raises ValueError for wrong settings."""
    nodes = cfg.retention or {}
    return [build(node, vocabulary=corpus.tokenizer) for node in nodes.values() if node is not None]


def batch_samples(tokens: int | float | str, longest: int, world_size: int) -> int:
    """Returns the number of samples in a batch of `tokens` tokens.

    longest  tokens of the longest possible sample

    Raises ValueError when that is not the same number of samples, at least 1, for every rank.
    """
    samples, left = divmod(round(quantity(tokens)), longest)
    if left or samples % world_size or not samples:
        near = max(1, round(quantity(tokens) / longest / world_size)) * world_size * longest
        raise ValueError(
            f"batch.tokens={tokens} must be a multiple of {longest * world_size}: {longest}, the tokens of a sample, "
            f"for each of trainer.devices={world_size}; set batch.tokens={near}"
        )
    return samples


def step_tokens(samples: Samples, count: int) -> int:
    """Returns the mean number of tokens in `count` samples."""
    return max(1, round(count * samples.num_tokens / len(samples)))


def row_tokens(samples: Samples, sides: int) -> int:
    """Returns the mean number of tokens in a row of samples that have `sides` rows each."""
    return max(1, round(samples.num_tokens / (len(samples) * sides)))


def build_model(cfg: DictConfig, corpus: Corpus, outputs: dict[str, int], hardware: Local | None = None) -> Model:
    """Builds the untrained model of a config: weights are drawn with its seed, and the vocabulary is that of `corpus`.

    outputs   number of outputs of each task head, by name; the weights of task heads are zero
    hardware  the trainer, which may keep only a share of the weights; None keeps all
    """

    def draw() -> Model:
        torch.manual_seed(cfg.seed)
        return build(cfg.model, vocab_size=corpus.tokenizer.vocab_size)

    model = draw() if hardware is None else hardware.build(draw)
    add_heads(model, outputs)
    return model


def choose_micro_batch(
    setting: int | str, rows: int, context: int, model: Model, hardware: Local, sides: int = 1, padded: bool = False
) -> int:
    """Returns the samples per forward and backward pass: batch.micro, or for "auto" as many as half of the free memory
    of every rank holds. With "auto" all ranks must call it.

    rows    samples of this rank in an optimizer step
    sides   rows of `context` tokens that a sample has: 2 for a pair of answers
    padded  whether rows differ in length
    """
    if setting != "auto":
        return min(int(setting), rows)
    with hardware.runtime.precision(device_of(model)):
        trial = hardware.trial(model)
        row = sides * activation_bytes(trial, context)
        if hardware.checkpoint_activations:  # keeps the inputs of all blocks, and the activations of one block
            row = row // len(model.blocks) + 4 * sides * context * model.width * len(model.blocks)
        if hardware.checkpoint_activations == "selective":
            from kleiber.training.recomputation import product_bytes

            row += sides * product_bytes(trial, context)
    # Ranks with different numbers of micro-batches would wait for each other in collective operations.
    memory_limit = hardware.least_over_ranks(int(0.5 * free_memory_bytes(hardware.device) // row))
    return max(1, min(largest_part(rows, hardware, padded), memory_limit))


def largest_part(rows: int, hardware: Local, padded: bool) -> int:
    """Returns the samples per forward and backward pass where there is memory enough for all `rows`.

    A CPU splits rows that differ in length into up to eight parts of at least eight rows, so that the rows of a part
    have similar lengths and little padding.
    """
    return min(rows, max(8, -(-rows // 8))) if padded and hardware.accelerator == "cpu" else rows


def scored_rows(setting: int | str, micro: int, rows: int, part: int) -> int:
    """Returns the samples per forward pass of an evaluation: `rows`, or fewer where batch.micro or the memory limits
    the micro-batches `micro` of training.

    Then it is two micro-batches: a pass without gradients keeps the activations of one block only.

    part  the micro-batch for which there would be memory enough
    """
    is_limited = setting != "auto" or micro < part
    return max(1, min(rows, 2 * micro if is_limited else rows))


def activation_bytes(model: Model, context: int) -> int:
    """Measures the bytes of activations that a row of `context` tokens keeps for the backward pass."""
    with torch.random.fork_rng(devices=[]):
        return max(1, _saved_bytes(model, 2, context) - _saved_bytes(model, 1, context))


def _saved_bytes(model: Model, rows: int, context: int) -> int:
    """Bytes of the tensors, other than weights, that a forward pass saves for the backward pass."""
    weights = {local(p).untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}  # references, so that no address is used twice

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model(Batch(torch.zeros(rows, context, dtype=torch.long, device=device_of(model))))
    return sum(storage.nbytes() for storage in saved.values())
