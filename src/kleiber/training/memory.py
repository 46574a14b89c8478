"""The memory of a process: what is free, the peak of what it has used, and what glibc does with freed memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


def keep_freed_memory() -> None:
    """Makes glibc keep the memory that a step frees, instead of returning it to the kernel, which has to zero it again.

    Page faults took a tenth of a small step on a CPU. Does nothing except on Linux with glibc.
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError):  # of another C library
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 << 20)):
            mallopt(option, value)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of PyTorch's allocator since the last reset on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak_memory(device: torch.device) -> None:
    """Makes the memory in use now the peak of a GPU. The peak of a process, and so of a CPU, cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def free_memory_bytes(device: torch.device) -> int:
    """Returns the free memory of a rank in bytes: that of its GPU, or an equal part of that of the machine.

    A machine other than Linux counts half of its memory as free.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return machine_memory_bytes() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def machine_memory_bytes() -> int:
    """Returns the free memory of the machine in bytes; outside Linux, half of its memory."""
    try:  # Linux reports available memory, which includes caches that the kernel can drop
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
