"""Measures time, speed and memory of training itself: evaluation and checkpoints are not in its seconds."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from kleiber.training.lightning import Watch


class Throughput(Watch):
    """Logs, every `every` steps, speed/tokens_per_s and speed/seconds (training only, of this stage, over its resumes).

    The first step of a process is left out of the speed (it pays for allocation and compilation), not of the seconds.
    """

    of_one_stage = True

    def __init__(self, batch_tokens: int, every: int = 10) -> None:
        self.batch_tokens, self.every = batch_tokens, every
        self.seconds = 0.0
        self.timed_steps, self.timed_seconds = 0, 0.0
        self._warm, self._started = False, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    @property
    def tokens_per_s(self) -> float | None:
        return self.timed_steps * self.batch_tokens / self.timed_seconds if self.timed_seconds else None

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        spent = time.perf_counter() - self._started
        self.seconds += spent
        if self._warm:
            self.timed_steps += 1
            self.timed_seconds += spent
        self._warm = True
        if trainer.global_step % self.every == 0 and self.tokens_per_s:
            for logger in trainer.loggers:
                row = {"speed/tokens_per_s": self.tokens_per_s, "speed/seconds": self.seconds}
                logger.log_metrics(row, trainer.global_step)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory so far: of the allocator on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that an MFU is a share of: the best measured fp32 matrix product on a CPU, the data sheet's on a GPU.

    None for a GPU that is not in the table: an MFU against a guess would be no number.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return next((peak for key, peak in DENSE_BF16_PEAK.items() if key in name), None)
    # As large as keeps all threads busy, and no larger: beyond that a product is no faster, only longer.
    size, best = round(512 * max(1.0, torch.get_num_threads() / 2) ** 0.5), float("inf")
    a, b, product = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    for _ in range(16):
        started = time.perf_counter()
        torch.mm(a, b, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


# Dense bf16 with fp32 accumulation, NVIDIA data sheets (SXM parts where both exist).
DENSE_BF16_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
