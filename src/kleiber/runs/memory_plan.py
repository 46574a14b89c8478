"""The memory that a step of training needs, planned with tensors that have a shape and no values.

`plan_memory` makes two steps of a stage on PyTorch's fake tensors, with the model, objective and optimizer of the run,
and adds up the bytes of the tensors that exist. It allocates and computes nothing, so it plans models that this machine
could not hold. It does not see what a kernel allocates for itself, the libraries, buffers of NCCL, and retention
methods.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kleiber.config.targets import build
from kleiber.data.batches import stream
from kleiber.models.counting import without_weights
from kleiber.nn.dispatch import Experts
from kleiber.nn.loss import PLANNED
from kleiber.nn.sharded_model import matrices_of_blocks
from kleiber.records.closing_table import format_number
from kleiber.runs.open import freeze_unused_heads
from kleiber.runs.plan import Plan
from kleiber.training.step import accumulate
from kleiber.training.trainer import Local
from kleiber.types import Json
from kleiber.types.batch import Batch
from kleiber.types.model import Model

PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "copies": "bf16 copies of weights",
    "gathered": "gathered weights",
    "activations": "activations",
    "logits": "logits",
}
STEPS = 2  # the first makes the state of the optimizer
LARGEST = 2**31  # in place of a number that only values decide


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each rank at the moment of a step at which they are most, by what they are for (`PARTS`).

    rows  samples in a forward and backward pass
    """

    rows: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def to_json(self) -> Json:
        return {"bytes": self.total, "rows": self.rows, "parts": self.parts}

    def describe(self, ranks: int) -> str:
        """Returns the total and the parts in MiB or GiB."""
        listed = ", ".join(f"{PARTS[name]} {format_size(size)}" for name, size in self.parts.items() if size)
        where = f" on each of {ranks} devices" if ranks > 1 else ""
        return f"{format_size(self.total)} at the peak of a step{where}, {self.rows} rows at once: {listed}"


def format_size(size: float) -> str:
    """Returns a number of bytes in MiB, or in GiB from 1 GiB on."""
    unit, name = (2**30, "GiB") if size >= 2**30 else (2**20, "MiB")
    return f"{format_number(size / unit)} {name}"


def micro_rows(cfg: DictConfig, plan: Plan, devices: int) -> int:
    """Returns the samples of a rank in a forward and backward pass; 1 for "auto" where nothing could be measured."""
    setting = plan.micro_batch or (1 if cfg.batch.micro == "auto" else int(cfg.batch.micro))
    return min(max(1, plan.rows // devices), setting)


def unplanned_reason(cfg: DictConfig, plan: Plan, hardware: Local) -> str | None:
    """Returns why the memory of a stage cannot be planned; None where it can be."""
    if any(isinstance(module, nn.LSTM) for module in plan.model.modules()):
        return "the kernel of the LSTM keeps more for the backward pass than its results"
    if plan.privacy is not None:
        return "privacy has a pass and a gradient for each sample"
    if plan.objective.answers:
        return "the model writes answers, whose lengths only values decide"
    if hardware.dtype != torch.float32:
        return f"trainer.precision={hardware.precision} is there to test exactness"
    return None


def plan_memory(cfg: DictConfig, plan: Plan, hardware: Local, device: str) -> MemoryPlan | str:
    """Plans the memory of a rank in a stage; the reason where it cannot be planned.

    hardware  the trainer; its `devices` are the ranks
    device    cpu or gpu: where the ranks compute
    """
    reason = unplanned_reason(cfg, plan, hardware)
    if reason is not None:
        return reason
    share = max(1, plan.rows // hardware.devices)
    rows = micro_rows(cfg, plan, hardware.devices)
    batch = next(stream(plan.corpus.train, cfg.seed, 0, rows * min(2, -(-share // rows)), 0, 1))
    live = LiveBytes(plan.corpus.tokenizer.vocab_size)
    token = PLANNED.set(device)
    try:
        with torch.random.fork_rng(devices=[]), live.mode, live:
            model = without_weights(plan.model, "cpu")
            if cfg.adapter is not None:
                build(cfg.adapter).apply(model, cfg.seed)
            freeze_unused_heads(model, [plan.objective])
            parts = _peak_of_steps(live, model, plan, hardware, batch, rows)
    except (RuntimeError, TypeError, AttributeError) as error:  # of an operation without a fake one
        return f"a step needs the values of tensors ({type(error).__name__})"
    finally:
        PLANNED.reset(token)
    return MemoryPlan(rows, parts)


def _peak_of_steps(
    live: LiveBytes, model: Model, plan: Plan, hardware: Local, batch: Batch, rows: int
) -> dict[str, int]:
    """Makes the steps within the modes of `live`, and returns the bytes of each part at the peak of the last one."""
    hardware.prepare_blocks(model)
    divided = divided_parameters(model, hardware)
    ranks: dict[Tensor, int] = {p: hardware.devices if p in divided else 1 for p in model.parameters()}
    for tensor in (*model.parameters(), *model.buffers()):
        live.mark("weights", tensor, ranks.get(tensor, 1))
    bf16 = str(hardware.precision) == "bf16"
    rounded = matrices_of_blocks(model) if hardware.shards_weights and bf16 else set()  # which are gathered in bf16
    live.weights = {number for number, (part, _) in live.marks.items() if part == "weights"}
    live.gathered = {live.number(parameter) for parameter in rounded}
    optimizer = plan.optimizer.build(model, model.roles(), model.parametrization.lr_scale)
    parts = batch.map(live.mode.from_tensor).split(rows)
    # FSDP2 sums gradients over ranks after the last micro-batch, and until then each rank has whole ones.
    whole = hardware.shards_weights and len(parts) > 1
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p: live.mark("gradients", p.grad, 1 if whole else ranks[p])
            )
    for _ in range(STEPS):
        start = len(live.events)
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            accumulate(model, plan.objective, plan.objective.prepare_step(model, parts), Tensor.backward)
            optimizer.step()
            for parameter, state in optimizer.state.items():
                for tensor in state.values():
                    if isinstance(tensor, Tensor):
                        live.mark("optimizer", tensor, ranks.get(parameter, 1))
            optimizer.zero_grad()
    return live.at_peak(start) | ({"gathered": gathered_bytes(model, rounded)} if hardware.shards_weights else {})


def divided_parameters(model: Model, hardware: Local) -> set[nn.Parameter]:
    """Returns the parameters of which each rank has only its share."""
    if hardware.shards_weights:
        return {*model.parameters()}
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    return {p for module in experts for p in module.parameters()} if hardware.divides_experts else set()


def gathered_bytes(model: Model, rounded: set[nn.Parameter]) -> int:
    """Returns the bytes that trainer=fsdp gathers: weights that are not rounded outside of their block, and a block.

    Of a block that computes, these are its weights, those of the next block, which arrive, and its gradient before it
    is divided. In bf16 the weights are freed before the gradient is copied to fp32 for the sum over ranks.

    rounded  parameters that are gathered in bf16
    """
    blocks = [[p for p in block.parameters() if not rounded or p in rounded] for block in model.blocks]
    sizes = [sum(p.numel() for p in block) for block in blocks]
    outside = sum(p.numel() for p in model.parameters()) - sum(sizes)
    return 4 * outside + (2 + 2 + 4 if rounded else 3 * 4) * max(sizes)


class LiveBytes(TorchDispatchMode):
    """Records when the storages of fake tensors begin and end.

    mode     the mode that makes tensors fake, which must be entered first
    events   (number of a storage, its bytes, negative where it ends), in the order of time
    marks    part and number of ranks over which a storage is divided, by its number; others are activations
    weights  numbers of the storages of weights
    gathered  of these, those whose copies in bf16 are what is gathered, and have no bytes of their own
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.vocabulary = vocabulary
        self.numbers: dict[int, int] = {}
        self.events: list[tuple[int, int]] = []
        self.marks: dict[int, tuple[str, int]] = {}
        self.weights: set[int] = set()
        self.gathered: set[int] = set()

    def number(self, tensor: Tensor) -> int:
        """Returns the number of a tensor's storage, a new one where it was not recorded before."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.events)
            self.events.append((len(self.events), size))
            weakref.finalize(storage, self._end, key, size)
        return self.numbers[key]

    def mark(self, part: str, tensor: Tensor | None, ranks: int = 1) -> None:
        """Sets what a tensor is for."""
        assert tensor is not None
        self.marks[self.number(tensor)] = part, ranks

    def at_peak(self, start: int) -> dict[str, int]:
        """Returns the bytes of each part when their sum is largest, from event `start` on."""
        sizes, peak = Counter[str](), Counter[str]()
        for position, (number, size) in enumerate(self.events):
            part, ranks = self.marks.get(number, ("activations", 1))
            if part == "gathered":
                continue
            sizes[part] += size // ranks if size > 0 else -(-size // ranks)
            if position >= start and sizes.total() > peak.total():
                peak = sizes.copy()
        return {part: peak[part] for part in PARTS if part in peak}

    def _end(self, key: int, size: int) -> None:
        self.events.append((self.numbers.pop(key), -size))

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        args, named = tree_map(self._fake, (args, kwargs or {}))
        inputs = [value for value in tree_leaves((args, named)) if isinstance(value, Tensor)]
        result = run_fake(function, inputs, args, named)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                number = self.number(value)
                if number not in self.marks and value.shape[-1:] == (self.vocabulary,):
                    self.marks[number] = "logits", 1
                if function is torch.ops.aten._to_copy.default and (copied := self.number(inputs[0])) in self.weights:
                    self.marks[number] = "gathered" if copied in self.gathered else "copies", 1
        return result

    def _fake(self, value: object) -> object:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            return self.mode.from_tensor(value)
        return value


def run_fake(function: Callable[..., object], inputs: list[Tensor], args: tuple, kwargs: dict) -> object:
    """Returns the result of an operation on fake tensors, the largest one where its size depends on values."""
    if function is torch.ops.aten._grouped_mm.default:  # PyTorch has a fake one for bf16 alone
        first, second, offsets = inputs[:3]
        shape = (len(first), second.shape[2]) if second.dim() == 3 else (len(offsets), len(first), second.shape[1])
        return first.new_empty(shape)
    try:
        return function(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        first = inputs[0]
    name = str(function).removeprefix("aten.")
    if name.startswith("_local_scalar_dense"):
        is_listed = first.untyped_storage().nbytes() > first.element_size()  # one of several, which have a sum
        return first.dtype.is_floating_point or first.dtype == torch.bool or (0 if is_listed else LARGEST)
    if name.startswith("nonzero"):
        return first.new_empty((first.numel(), first.dim()), dtype=torch.int64)
    raise NotImplementedError(f"{name} has no result without values")
