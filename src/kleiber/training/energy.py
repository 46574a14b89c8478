"""The power that a process draws, read from the counters of GPUs (NVML) and CPUs (RAPL) where they can be read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from kleiber.config.cost import Power

RAPL = Path("/sys/class/powercap")
CPU_TIMES = Path("/proc/stat")
MICRO, MILLI = 1e-6, 1e-3
INTERVAL = 1.0  # seconds between two readings; a RAPL counter starts again after some minutes


class EnergyMeter:
    """Mean power of the device of this process, in watts, since the meter was built.

    A GPU has a counter of its own. The counters of CPU packages count all processes, so the energy of each interval is
    multiplied by this process' share of the CPU time that all processes used.
    """

    def __init__(self, device: torch.device, rapl: Path = RAPL, cpu_times: Path = CPU_TIMES) -> None:
        self.source, self._joules, self._ranges = "", 0.0, ()
        self._read: Callable[[], tuple[float, ...]] = tuple
        self._cpu_times = cpu_times
        if device.type == "cuda":
            self._open_nvml(device)
        else:
            self._open_rapl(rapl)
        self._began = self._last_time = time.monotonic()
        self._last, self._last_cpu = self._read(), self._used_and_busy()

    def _open_nvml(self, device: torch.device) -> None:
        try:
            nvml = import_module("pynvml")
            nvml.nvmlInit()
            identifier = str(torch.cuda.get_device_properties(device).uuid)
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{identifier}".encode())
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except Exception:  # not installed, no permission, an old driver or GPU: not measured
            return
        self.source = "NVML"
        self._read = lambda: (MILLI * nvml.nvmlDeviceGetTotalEnergyConsumption(handle),)

    def _open_rapl(self, folder: Path) -> None:
        packages = sorted(folder.glob("intel-rapl:[0-9]")) + sorted(folder.glob("intel-rapl:[0-9][0-9]"))
        counters = [package / "energy_uj" for package in packages]
        try:
            self._ranges = tuple(MICRO * float((p / "max_energy_range_uj").read_text()) for p in packages)
            if not counters or not all(counter.read_text() for counter in counters) or self._used_and_busy() is None:
                return
        except (OSError, ValueError):  # of an ordinary user the kernel keeps them
            return
        self.source = "RAPL"
        self._read = lambda: tuple(MICRO * float(counter.read_text()) for counter in counters)

    def _used_and_busy(self) -> tuple[float, float] | None:
        """CPU seconds of this process, and of all processes; None where the system does not tell."""
        try:
            ticks = [int(text) for text in self._cpu_times.read_text().split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            return None
        used = os.times()
        idle = ticks[3] + ticks[4]  # idle, and waiting for a disk
        return used.user + used.system, (sum(ticks[:8]) - idle) / os.sysconf("SC_CLK_TCK")

    def sample(self) -> None:
        """Adds the energy since the last reading, unless that was less than INTERVAL seconds ago."""
        if self.source and time.monotonic() - self._last_time >= INTERVAL:
            self._sample()

    def _sample(self) -> None:
        values, cpu, share = self._read(), self._used_and_busy(), 1.0
        drawn = [now - before for now, before in zip(values, self._last, strict=True)]
        if self.source == "RAPL":
            drawn = [joules % span for joules, span in zip(drawn, self._ranges, strict=True)]
            if cpu is not None and self._last_cpu is not None and cpu[1] > self._last_cpu[1]:
                share = min(1.0, (cpu[0] - self._last_cpu[0]) / (cpu[1] - self._last_cpu[1]))
        self._joules += share * sum(drawn)
        self._last, self._last_cpu, self._last_time = values, cpu, time.monotonic()

    def power(self) -> Power | None:
        """The mean power so far; None where no counter can be read, or none has moved yet."""
        if not self.source:
            return None
        self._sample()
        watts = self._joules / max(time.monotonic() - self._began, 1e-9)
        return Power(watts, self.source) if watts > 0 else None
