"""A callback that times and profiles the steps of a training, for `benchmarks/gpu.py`.

Allowed by KLEIBER_EXTENSIONS=gpu_callback, with this folder in PYTHONPATH.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from kleiber.training.lightning import LeanCallback, Trainer
from kleiber.training.lit import LitLM
from kleiber.types import Count

TOP = 15  # kernels listed
SYNCS = ("cudaStreamSynchronize", "cudaEventSynchronize")  # calls in which the host waits for the device


class StepTimer(LeanCallback):
    """Writes the seconds per optimizer step to a JSON file, and the profile of a step, with the device synchronized.

    The clock runs from the start of step `warmup` to that of the last but one, because the last step is followed by an
    evaluation. The step between them is profiled if `profile_step`.
    """

    def __init__(self, path: str, warmup: Count, profile_step: bool = False) -> None:
        self.path, self.warmup, self.profile_step = Path(path), warmup, profile_step
        self.started, self.profiler = 0.0, profile()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LitLM, *_: object) -> None:
        step, device = trainer.global_step, pl_module.device
        if step == self.warmup:
            synchronize(device)
            self.started = time.perf_counter()
        elif step == trainer.max_steps - 2:
            synchronize(device)
            timed = step - self.warmup
            seconds = (time.perf_counter() - self.started) / timed
            self.path.write_text(json.dumps({"seconds_per_step": seconds, "timed_steps": timed}))
            if self.profile_step:
                on_device = [ProfilerActivity.CUDA] if device.type == "cuda" else []
                self.profiler = profile(activities=[ProfilerActivity.CPU, *on_device])
                self.profiler.start()
                self.started = time.perf_counter()
        elif step == trainer.max_steps - 1 and self.profile_step:
            synchronize(device)
            seconds = time.perf_counter() - self.started
            self.profiler.stop()
            record = json.loads(self.path.read_text())
            self.path.write_text(json.dumps(record | {"profile": describe_step(self.profiler, seconds)}))


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_step(profiler: profile, seconds: float) -> dict[str, Any]:
    """Describes a profiled step.

    Returns the seconds of the step, the seconds with no kernel running, the number of kernels and of host
    synchronizations, and [name, milliseconds, calls] of the longest kernels. Without a GPU the operators of the CPU
    take the place of kernels, and there are no idle seconds.
    """
    events: Any = profiler.events() or []
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    if kernels:
        busy = covered((event.time_range.start, event.time_range.end) for event in kernels) / 1e6
        timed = [(event.name, event.time_range.elapsed_us() / 1e3) for event in kernels]
    else:
        busy, timed = None, [(event.name, event.self_cpu_time_total / 1e3) for event in events]
    total, calls = Counter[str](), Counter(name for name, _ in timed)
    for name, milliseconds in timed:
        total[name] += milliseconds
    return {
        "seconds": seconds,
        "seconds_without_kernel": None if busy is None else seconds - busy,
        "kernels": len(kernels),
        "host_syncs": sum(event.name in SYNCS for event in events if event.device_type == DeviceType.CPU),
        "top": [[name[:120], round(value, 4), calls[name]] for name, value in total.most_common(TOP)],
    }


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Returns the length of the union of intervals (start, end)."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length
