"""Speed of kleiber on a device, against a bare loop, Hugging Face's Llama and the matrix products and attention alone.

Parts of `benchmarks/gpu.py`. Every training is a process of its own, so that peaks of memory are those of one training.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from resume import ProcessFailed, finish, start
from step import bare, options

CALLBACK = Path(__file__).with_name("gpu_callback.py")
# Active FLOPs of the mixture equal those of the dense model: top-2 experts of half its hidden units.
MIXTURE = ["model=moe", "model.mlp.num_experts=8", "model.mlp.k=2"]
WAYS = {  # of compiling
    "full": (False, True),
    "small": (False,),
}
SHAPES = {
    "full": {"width": 768, "depth": 12, "heads": 12, "hidden": 2048, "context": 1024, "vocab": 32000, "rows": 32},
    "small": {"width": 64, "depth": 1, "heads": 2, "hidden": 176, "context": 64, "vocab": 512, "rows": 4},
}
STEPS = {"full": (30, 8), "small": (6, 2)}  # steps, of which so many warm up
WORDS = {"full": 3_000_000, "small": 20_000}  # of the text
LADDER = {  # widths, numbers of processes at once and steps
    "full": ((64, 256), (1, 2, 4, 8), 500),
    "small": ((32,), (1, 2), 10),
}


@dataclass
class Machine:
    """Where speed is measured: the device (cuda or cpu), the scale (full or small), a folder, and a text or folder."""

    device: str
    scale: str
    root: Path
    text: Path | None = None
    flops: dict[str, float] = field(default_factory=dict)  # per token, of "dense" and "mixture"

    @property
    def shape(self) -> dict[str, int]:
        return SHAPES[self.scale]

    @property
    def data(self) -> list[str]:
        """Overrides for the text; a text of random words is written on the first call where none was passed."""
        path = self.text or self.root / "words.txt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(random_words(WORDS[self.scale]))
        return ["data=text", f"data.path={path}"]

    @property
    def trainer(self) -> list[str]:
        return [f"trainer={'gpu' if self.device == 'cuda' else 'cpu'}", "trainer.precision=bf16"]

    def speed(self, seconds: float, kind: str = "dense") -> dict[str, float | None]:
        """Returns seconds per step, tokens per second and the MFU, relative to the dense bf16 peak of the data sheet.

        The MFU is None for a GPU that is not in the table; that of a CPU is relative to a measured fp32 product.
        """
        from kleiber.training.trainer import peak_flops

        rate = self.shape["rows"] * self.shape["context"] / seconds
        peak, flops = peak_flops(torch.device(self.device)), self.flops.get(kind)
        mfu = rate * flops / peak if peak and flops else None
        return {"seconds_per_step": seconds, "tokens_per_s": rate, "mfu": mfu}


def random_words(count: int, lexicon: int = 60_000) -> str:
    """Returns lines of words of random letters, whose frequencies follow Zipf's law; enough words for 32,000 tokens."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, length)) for length in rng.integers(2, 11, lexicon)]
    shares = 1 / np.arange(1, lexicon + 1)
    drawn = rng.choice(lexicon, count, p=shares / shares.sum())
    return "\n".join(" ".join(words[i] for i in drawn[start : start + 500]) for start in range(0, count, 500))


def training(machine: Machine, name: str, overrides: Sequence[str], profiled: bool = False) -> dict[str, Any]:
    """Trains a few steps in a process. Returns {"timer": what StepTimer wrote, "stage": its record in summary.json}."""
    steps, warmup = STEPS[machine.scale]
    root = machine.root / name
    root.mkdir(parents=True, exist_ok=True)
    timer = [
        "+callbacks.timer._target_=gpu_callback.StepTimer", f"+callbacks.timer.path={root / 'timer.json'}",
        f"+callbacks.timer.warmup={warmup}", f"+callbacks.timer.profile_step={profiled}", "eval.every_steps=0",
    ]  # fmt: skip
    native = ("model.width=", "model.num_heads=") if "model=hf" in overrides else ()
    shape = [override for override in options(machine.shape, steps) if not override.startswith(native)]
    finish(start([*machine.trainer, *shape, *machine.data, *timer, *overrides], root, extension=CALLBACK))
    (summary,) = root.glob("*/*/summary.json")
    stage = json.loads(summary.read_text())["stages"][0]
    return {"timer": json.loads((root / "timer.json").read_text()), "stage": stage}


def attempt(name: str, measure: Callable[[], dict[str, Any]], **labels: object) -> dict[str, Any]:
    """Returns the row of a measurement, or of its error."""
    row = {"name": name, **labels}
    try:
        return row | {"status": "ok"} | measure()
    except (ProcessFailed, subprocess.SubprocessError, ValueError) as error:
        output = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        return row | {"status": "failed", "error": (output.strip() or str(error)).splitlines()[-1]}


def kleiber_speed(machine: Machine, compiled: bool, kind: str = "dense") -> dict[str, Any]:
    """Returns the speed of kleiber's dense model or mixture, and what its own record says."""
    extra = [*(MIXTURE if kind == "mixture" else []), f"trainer.compile={compiled}"]
    result = training(machine, f"{kind}-{compiled}", extra)
    stage = result["stage"]
    machine.flops[kind] = stage["flops"]["model"] / stage["tokens"]
    return {
        **machine.speed(result["timer"]["seconds_per_step"], kind),
        "peak_memory_bytes": stage["peak_memory_bytes"],
        "recorded_tokens_per_s": stage["tokens_per_s"],
        "recorded_mfu": stage["mfu"],
        "flops_per_token": machine.flops[kind],
        "parameters": stage["params"]["total"],
    }


def bare_speed(machine: Machine, compiled: bool) -> dict[str, Any]:
    """Returns the speed of benchmarks/bare.py with the same shape and precision."""
    steps, warmup = STEPS[machine.scale]
    flags = [f"--device={machine.device}", "--precision=bf16", f"--warmup={warmup}", *(["--compile"] * compiled)]
    result = bare(machine.shape, steps, "plain", *flags)
    return {**machine.speed(result["seconds_per_step"]), "peak_memory_bytes": result["peak_memory_bytes"]}


def llama_speed(machine: Machine, compiled: bool) -> dict[str, Any]:
    """Returns the speed of Hugging Face's Llama of the same shape, trained by kleiber with model=hf."""
    shape = machine.shape
    config = (
        f"{{hidden_size: {shape['width']}, intermediate_size: {shape['hidden']}, tie_word_embeddings: true, "
        f"num_attention_heads: {shape['heads']}, num_key_value_heads: {shape['heads']}}}"
    )
    extra = ["model=hf", "model.path=llama", "model.weights=random", f"model.config={config}"]
    result = training(machine, f"llama-{compiled}", [*extra, f"trainer.compile={compiled}"])
    speed = machine.speed(result["timer"]["seconds_per_step"])
    return {**speed, "peak_memory_bytes": result["stage"]["peak_memory_bytes"]}


def ceiling_speed(machine: Machine) -> dict[str, Any]:
    """Returns the speed of a step's matrix products and F.scaled_dot_product_attention alone, forward and backward.

    Without norms, rotary positions, activations, loss and optimizer: no Transformer of this shape that uses these
    kernels can be faster.
    """
    shape, device = machine.shape, torch.device(machine.device)
    width, heads, rows, context = shape["width"], shape["heads"], shape["rows"], shape["context"]

    def tensor(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device=device, dtype=torch.bfloat16).requires_grad_()

    x, q = tensor(rows * context, width), tensor(rows, heads, context, width // heads)
    hidden = tensor(rows * context, shape["hidden"])
    qkv, out, up = tensor(width, 3 * width), tensor(width, width), tensor(width, 2 * shape["hidden"])
    down, head = tensor(shape["hidden"], width), tensor(width, shape["vocab"])

    def block() -> None:
        for left, right in ((x, qkv), (x, out), (x, up), (hidden, down)):
            product = left @ right
            torch.autograd.grad(product, (left, right), product.detach())
        mixed = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        torch.autograd.grad(mixed, q, mixed.detach())

    def output() -> None:
        product = x @ head
        torch.autograd.grad(product, (x, head), product.detach())

    seconds = shape["depth"] * seconds_of(block, device) + seconds_of(output, device)
    return {**machine.speed(seconds)}


def seconds_of(call: Callable[[], None], device: torch.device, repeats: int = 10) -> float:
    """Returns the mean seconds of a call, after three that warm up."""
    for number in range(repeats + 3):
        if number == 3:
            wait_for(device)
            started = time.perf_counter()
        call()
    wait_for(device)
    return (time.perf_counter() - started) / repeats


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dense(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yields the speed of kleiber, the bare loop and Llama with and without compilation, and the ceiling."""
    for compiled in WAYS[machine.scale]:
        ours = attempt("kleiber", lambda c=compiled: kleiber_speed(machine, c), compiled=compiled)
        yield ours
        loop = attempt("bare loop", lambda c=compiled: bare_speed(machine, c), compiled=compiled)
        if ours["status"] == loop["status"] == "ok":
            loop["kleiber_over_bare"] = ours["tokens_per_s"] / loop["tokens_per_s"]
        yield loop
    yield attempt("attention and matrix products alone", lambda: ceiling_speed(machine))
    for compiled in WAYS[machine.scale]:
        yield attempt("Hugging Face Llama", lambda c=compiled: llama_speed(machine, c), compiled=compiled)


def mixture(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yields the speed of a mixture of 8 experts, top-2, of equal active FLOPs."""
    for compiled in WAYS[machine.scale]:
        name = "kleiber, 8 experts, top-2"
        yield attempt(name, lambda c=compiled: kleiber_speed(machine, c, "mixture"), compiled=compiled)


def profiles(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yields the profile of one step of the dense model and of the mixture."""
    for kind, extra in (("dense", []), ("mixture", MIXTURE)):
        for compiled in WAYS[machine.scale]:
            overrides = [*extra, f"trainer.compile={compiled}"]
            name = f"profile-{kind}-{compiled}"
            yield attempt(
                kind, lambda n=name, o=overrides: training(machine, n, o, True)["timer"]["profile"], compiled=compiled
            )


def small_models(machine: Machine) -> Iterator[dict[str, Any]]:
    """Yields the runs per hour of small models that 1, 2, 4 and 8 processes train at once, start-up included."""
    widths, counts, steps = LADDER[machine.scale]
    for width in widths:
        for count in counts:
            labels = {"width": width, "processes": count, "steps": steps}
            yield attempt("small models", lambda w=width, n=count: runs_per_hour(machine, w, n, steps), **labels)


def runs_per_hour(machine: Machine, width: int, count: int, steps: int) -> dict[str, Any]:
    """Trains `count` models at once, as those of a ladder: two layers, rows of 128 bytes, 1,024 tokens a step."""
    root = machine.root / f"small-{width}-{count}"
    overrides = [
        *machine.data, f"model.width={width}", "model.depth=2", "model.num_heads=2", "model.context=128",
        "batch.tokens=1024", f"budget.steps={steps}", "logger=csv", "eval.tokens=4096", "eval.every_steps=0",
        "callbacks.checkpoints.every=0", "callbacks.samples=null",
    ]  # fmt: skip
    started = time.perf_counter()
    processes: list[subprocess.Popen[str]] = []
    try:
        for seed in range(count):
            processes.append(start([*machine.trainer, *overrides, f"seed={seed}"], root, extension=CALLBACK))
        for process in processes:
            finish(process)
    finally:
        for process in processes:
            process.kill()
    seconds = time.perf_counter() - started
    stages = [json.loads(path.read_text())["stages"][0] for path in root.glob("*/*/summary.json")]
    return {
        "seconds": seconds,
        "runs_per_hour": 3600 * count / seconds,
        "tokens_per_s_together": sum(stage["tokens_per_s"] for stage in stages),
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages),
    }
