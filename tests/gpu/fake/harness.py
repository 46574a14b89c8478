"""Steps of training on a fake CUDA device: which choices work there, and where the host waits for the device.

    python tests/gpu/fake/harness.py LIBRARY FILE [NAME...]

LIBRARY is `device.cpp`, compiled. A line of FILE is added for each combination, or for those named, as JSON. Kernels,
numbers, memory and NCCL are not tested: tensors have a shape, a type and a device, and no values.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":  # before torch is imported
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(Path(found.origin).parent / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(sys.argv[1])
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import json
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import torch
from agreement import COMPARED, Device, TrainingFailed, overrides_of, train
from small_run import REPOSITORY, TINY, last_of_each
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kleiber.evals.task_scores import held_out_loss
from kleiber.models.generation import generate
from kleiber.nn import flex
from kleiber.training import trainer
from kleiber.training.step import micro_batches

CUDA = torch.device("cuda", 0)
NEW = 4  # tokens
COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
HOST = ("objective/grpo",)  # writes its answers on the host, from values of the device
COMPILED = ("model/gpt", "model/moe", "model/attention/delta")  # of these the graphs are counted
STEPS = 3  # an optimizer makes its state in the first one


def place() -> str:
    """The innermost function of kleiber that is running, as module:function."""
    for frame in reversed(traceback.extract_stack()):
        for package in ("/kleiber/", "/kleiber_topics/"):
            if package in frame.filename:
                return f"{frame.filename.split(package)[-1]}:{frame.name}"
    return "?"


class Watch(TorchDispatchMode):
    """Counts operations on the device, the places where the host waits for it, and copies to it by their place."""

    active: ClassVar[list["Watch"]] = []

    def __enter__(self) -> "Watch":
        self.active.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.active.remove(self)
        super().__exit__(*error)

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode
        self.operations, self.waits, self.copies = 0, Counter[str](), Counter[str]()
        self.pageable, self.sparse = Counter[str](), 0
        self.pinned: list[Tensor] = []

    def pin(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor that counts as one in pinned memory."""
        self.pinned.append(torch.empty(tensor.shape, dtype=tensor.dtype))
        return self.pinned[-1]

    def fake(self, value: Any) -> Any:
        """A fake tensor in place of one with values, such as one of a batch that was read within a step."""
        is_real = isinstance(value, Tensor) and not isinstance(value, FakeTensor)
        return self.mode.from_tensor(value) if is_real else value

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(self.fake, (args, kwargs or {}))
        if function.namespace == "prim":
            return function(*args, **kwargs)
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        on_device = any(tensor.is_cuda for tensor in inputs)
        try:
            result = function(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            if on_device:
                self.waits[place()] += 1
            return stand_in(function, inputs)
        outputs = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if function.name().split(".")[0] in COPIES:
            target, source = (args[0], args[1]) if function.name() == "aten::copy_" else (outputs[0], args[0])
            if source.is_cuda and not target.is_cuda:
                self.waits[place()] += 1
            if target.is_cuda and not source.is_cuda:
                self.copies[place()] += 1
                self.pageable[place()] += all(source is not tensor for tensor in self.pinned)
        self.operations += on_device and not function.is_view
        return result


def stand_in(function: Any, inputs: list[Tensor]) -> Any:
    """A result of an operation whose result depends on values, which fake tensors do not have."""
    first, name = inputs[0], function.name()
    if name in ("aten::_local_scalar_dense", "aten::item"):
        return True if first.dtype == torch.bool else 1.0 if first.is_floating_point() else 0
    if name == "aten::nonzero":
        return first.new_empty((max(1, first.numel() // 2), first.dim()), dtype=torch.int64)
    if name in ("aten::equal", "aten::is_nonzero"):
        return True
    if name == "aten::repeat_interleave.Tensor":
        return first.new_empty((64,), dtype=torch.int64)
    if name in ("aten::masked_select", "aten::index.Tensor"):
        mask = inputs[1]
        return first.new_empty((max(1, mask.numel() // 2), *first.shape[mask.dim() :]))
    raise NotImplementedError(f"{name} has no stand-in")


@contextmanager
def fake_device() -> Iterator[FakeTensorMode]:
    """Within it tensors are fake, and PyTorch and kleiber find a CUDA device."""
    drawn = {
        name: getattr(torch, name) for name in ("rand", "randn", "randint", "randperm", "bernoulli", "multinomial")
    }
    as_tensor = torch.tensor

    def without_generator(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, generator=None, **options: draw(*args, **options)

    def tensor(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = as_tensor(data, **options)
        if device is None or torch.device(device).type != "cuda":
            return made
        for watch in Watch.active:  # a copy from memory that is not pinned, which the host waits for
            watch.waits[place()] += 1
        return torch.empty(made.shape, dtype=made.dtype, device=CUDA)

    answers = {"is_available": True, "is_initialized": True, "current_device": 0, "device_count": 1,
               "is_bf16_supported": True, "get_device_capability": (9, 0), "manual_seed_all": None,
               "empty_cache": None, "get_rng_state": None, "set_rng_state": None}  # fmt: skip
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        stack.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
        stack.enter_context(patch.object(torch, "Generator", lambda *_, **__: torch.default_generator))
        stack.enter_context(patch.object(torch, "tensor", tensor))
        stack.enter_context(
            patch.object(Tensor, "pin_memory", lambda host: Watch.active[-1].pin(host) if Watch.active else host)
        )
        for name, draw in drawn.items():
            stack.enter_context(patch.object(torch, name, without_generator(draw)))
        stack.enter_context(patch.object(Tensor, "numpy", lambda fake: np.ones(fake.shape, str(fake.dtype)[6:])))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # Kernels of FlexAttention are generated on a GPU: masks are made eagerly, and outputs have its shapes.
        stack.enter_context(patch.object(flex, "generated", lambda function: function))
        stack.enter_context(patch.object(flex, "attend", attend))
        yield stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, shared: bool) -> Tensor:
    """A tensor with the shape, type and gradients of `flex.attend`, whose mask must be on the device."""
    assert mask.kv_num_blocks.is_cuda and mask.kv_indices.is_cuda
    for watch in Watch.active:
        watch.sparse += 1
    return torch.nn.functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, enable_gqa=shared)


def to_device(value: Any) -> Any:
    """A value whose tensors are fake ones on the device; the weights of modules are replaced in place."""
    if isinstance(value, nn.Module):
        moved: dict[int, Tensor] = {}

        def move(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                fake = torch.empty_like(tensor, device=CUDA)
                moved[id(tensor)] = (
                    nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
                )
            return moved[id(tensor)]

        for module in value.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: move(tensor) for name, tensor in tensors.items() if tensor is not None})
        return value
    return tree_map(lambda leaf: torch.empty_like(leaf, device=CUDA) if isinstance(leaf, Tensor) else leaf, value)


class Reached(Exception):
    """Ends a run whose steps on the fake device have been made."""


def steps_on_the_device(lit: Any, batches: Any, row: dict[str, Any], bf16: bool) -> None:
    """Makes steps of a module, and puts the operations, waits and copies of the last one into `row`."""
    stub = SimpleNamespace(world_size=1, strategy=None, fit_loop=lit_loop(), global_step=0)
    with fake_device() as mode:
        to_device(lit)
        for method in lit.retention:
            vars(method).update(to_device({k: v for k, v in vars(method).items() if not k.startswith("_")}))
        optimizer = lit.configure_optimizers()
        replaced = {
            "trainer": property(lambda _: stub), "global_rank": property(lambda _: 0),
            "global_step": property(lambda _: stub.global_step), "optimizers": lambda _: optimizer,
            "manual_backward": lambda _, loss: loss.backward(),
        }  # fmt: skip
        stream = iter(batches)
        with patch.multiple(type(lit), **replaced):
            for step in range(STEPS):
                stub.global_step = step
                with unset_fake_temporarily():
                    batch = next(stream)
                with Watch(mode) as watch, torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    lit.training_step(lit.transfer_batch_to_device(batch, CUDA, 0), step)
        row |= {"operations": watch.operations, "waits": dict(watch.waits), "copies": dict(watch.copies)}
        row["sparse"] = watch.sparse
        row["pageable"] = {name: number for name, number in watch.pageable.items() if number}
        with Watch(mode) as watch, torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            held_out_loss(lit.model, lit.objective, [batch], CUDA)
        row["evaluation"] = dict(watch.waits)
        if lit.model.causal:
            row["generation"] = waits_of_generation(lit.model, mode)
        if row["choice"] in COMPILED:
            with Watch(mode):
                batch = lit.transfer_batch_to_device(batch, CUDA, 0)
            row["graphs"] = {part: graphs_of(lit, batch, mode, deep) for part, deep in (("model", 8), ("blocks", 0))}


def graphs_of(lit: Any, batch: Any, mode: FakeTensorMode, deep: int) -> dict[str, Any]:
    """Compiles the model as trainer.compile does; returns its graphs after each forward pass, and why they break.

    The passes have all rows, one row, and both again. No kernel is generated: a graph is run operation by operation.

    deep  blocks of a model beyond which they are compiled one by one
    """
    graphs, compile_module = [], nn.Module.compile

    def count(graph: Any, _: Any) -> Callable[..., Any]:
        graphs.append(graph)

        def run(*inputs: Any) -> Any:
            with mode:
                return graph.forward(*inputs)

        return run

    counters.clear()
    numbers, (one_row, *_) = [], micro_batches(batch, 1)
    with patch.object(trainer, "DEEP", deep), torch.autocast("cuda", torch.bfloat16):
        with patch.object(nn.Module, "compile", lambda module, **how: compile_module(module, backend=count, **how)):
            trainer.Local().compile_model(lit.model)
        for rows in (batch, one_row, batch, one_row):
            lit.objective(lit.model, rows)
            numbers.append(len(graphs))
    for module in lit.model.modules():
        module._compiled_call_impl = None
    return {"numbers": numbers, "breaks": dict(counters["graph_break"])}


def waits_of_generation(model: Any, mode: FakeTensorMode) -> dict[str, int]:
    """Where the host waits while NEW tokens are added to prompts of unequal length, greedily and by sampling."""
    prompts = torch.zeros(2, 4, dtype=torch.int64, device=CUDA)
    real = torch.ones(2, 4, dtype=torch.bool, device=CUDA)
    with Watch(mode) as watch, torch.no_grad():
        for settings in ({"temperature": 0.0}, {"top_k": 5, "top_p": 0.9}):
            generate(model, prompts, NEW, real=real, **settings)
    return dict(watch.waits)


def lit_loop() -> Any:
    """What of a trainer's loops counts a skipped step."""
    optim = SimpleNamespace(optim_step_progress=SimpleNamespace(increment_ready=int, increment_completed=int))
    return SimpleNamespace(epoch_loop=SimpleNamespace(manual_optimization=optim))


def combinations(folder: Path) -> dict[str, list[str]]:
    """The overrides of a tiny run of each choice, and of what is no choice of a group, by name."""
    device, tasks = Device("cpu", folder), ["data=instruct", f"data.path={REPOSITORY}/tests/data/instruct.jsonl"]
    sft = [*(override for override in TINY if not override.startswith("data")), "objective=sft", *tasks]
    mixture, long = [*TINY, "model=moe"], ["model.context=1024", "batch.tokens=2048"]
    more = {
        "fp32": [*TINY, "trainer.precision=32"], "fp32 mixture": [*mixture, "trainer.precision=32"],
        "recomputed": [*TINY, "trainer.checkpoint_activations=true"], "micro": [*TINY, "batch.micro=2"],
        "selective": [*TINY, "trainer.checkpoint_activations=selective"],
        "recomputed mixture": [*mixture, "trainer.checkpoint_activations=true"],
        "micro mixture": [*mixture, "batch.micro=2"], "z-loss": [*TINY, "objective.z_loss=1e-4"],
        "grouped keys": [*TINY, "model.attention.num_kv_heads=1"], "soft-cap": [*TINY, "model.attention.soft_cap=50"],
        "alibi": [*TINY, "model.attention.positions=alibi"], "ungated": [*TINY, "model.attention.qk_norm=false"],
        "value residual": [*TINY, "model.depth=2", "model.attention.value_residual=true"],
        "layernorm": [*TINY, "model.norm_type=layernorm"], "untied": [*TINY, "model.tied=false"],
        "padded rows": [*sft, "data.pack=false"], "packed rows": [*sft, "data.pack=true"],
        "prefix": [*sft, "model.depth=2", "model.attention.prefix=true"],
        "long packed rows": last_of_each([*sft, "data.pack=true", *long]),
        "long prefix": last_of_each([*sft, "data.pack=true", "model.depth=2", "model.attention.prefix=true", *long]),
        "long window": last_of_each([*TINY, "model/attention=window", *long]),
    }  # fmt: skip
    return {choice: overrides_of(choice, device) for choice in COMPARED if choice not in HOST} | more


def try_choice(choice: str, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Trains a tiny run up to its steps, and makes these on the fake device."""
    from kleiber.runs import stage

    row: dict[str, Any] = {"choice": choice}
    real, overrides = stage.fit, [*overrides, "callbacks.samples=null"]
    stages = ["first", "second"] if "stages=chain" in overrides else ["only"]

    def fit(trainer: Any, lit: Any, batches: Any, start: int) -> None:
        if stages.pop(0) == "first":  # on the CPU: what a choice does is in the stage after it
            return real(trainer, lit, batches, start)
        try:
            steps_on_the_device(lit, batches, row, bf16="trainer.precision=32" not in overrides)
        except Exception as error:
            row["error"] = describe(error)
        raise Reached

    with patch.object(stage, "fit", fit):
        try:
            train(overrides, folder / "runs")
        except TrainingFailed as error:
            if "operations" not in row and "error" not in row:
                row["error"] = describe(error)
    return row


def describe(error: Exception) -> str:
    """An error with the innermost line of kleiber that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/src/kleiber" in frame.filename]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {str(error)[:400]}{where}"


if __name__ == "__main__":
    with open(sys.argv[2], "a") as file, tempfile.TemporaryDirectory() as folder:
        tried = combinations(Path(folder))
        for name in sys.argv[3:] or tried:
            file.write(json.dumps(try_choice(name, tried[name], Path(folder))) + "\n")
            file.flush()
