"""Counters of energy: those of CPU packages count for a process by its share of the CPU time, even if they restart."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch

from kleiber.training.energy import EnergyMeter

TICK = os.sysconf("SC_CLK_TCK")


class Machine:
    """Counters of two CPU packages, and the CPU time of all processes, in files."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.now, self.used, self.busy = folder, 0.0, 0.0, 100.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("os.times", lambda: SimpleNamespace(user=self.used, system=0.0))
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):  # the last one is a part of the first
            (folder / name).mkdir()
            (folder / name / "max_energy_range_uj").write_text("1000000000")
            (folder / name / "energy_uj").write_text("999000000")
        self.write()

    def write(self):
        (self.folder / "stat").write_text(f"cpu {round(self.busy * TICK)} 0 0 12345 678 0 0 0 0 0\ncpu0 1\n")

    def draw(self, seconds, joules, used, busy):
        self.now, self.used, self.busy = self.now + seconds, self.used + used, self.busy + busy
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
            counter = self.folder / name / "energy_uj"
            counter.write_text(str((int(counter.read_text()) + round(joules * 1e6)) % 1_000_000_000))
        self.write()

    def meter(self):
        return EnergyMeter(torch.device("cpu"), self.folder, self.folder / "stat")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_a_process_that_used_a_quarter_of_the_cpu_time_drew_a_quarter_of_the_energy(machine):
    meter = machine.meter()
    machine.draw(seconds=10, joules=400, used=5, busy=20)  # 400 J of each of two packages
    assert meter.power().watts == pytest.approx(20.0)
    assert meter.power().source == "RAPL"


def test_a_counter_that_starts_again_between_two_readings_is_no_negative_energy(machine):
    meter = machine.meter()
    for _ in range(4):
        machine.draw(seconds=10, joules=600, used=10, busy=10)
        meter.sample()
    assert meter.power().watts == pytest.approx(120.0)


def test_readings_are_a_second_apart(machine):
    meter = machine.meter()
    machine.draw(seconds=0.5, joules=10, used=0.5, busy=0.5)
    meter.sample()
    (machine.folder / "intel-rapl:0" / "energy_uj").write_text("unreadable")
    meter.sample()  # reads nothing


@pytest.mark.parametrize("broken", ["energy_uj", "max_energy_range_uj"])
def test_counters_that_cannot_be_read_are_no_power(machine, broken):
    (machine.folder / "intel-rapl:1" / broken).unlink()
    assert machine.meter().power() is None


def test_no_counters_are_no_power(tmp_path):
    assert EnergyMeter(torch.device("cpu"), tmp_path).power() is None


def test_the_counter_of_a_gpu_is_its_own(machine, monkeypatch):
    total = [5_000_000.0]  # millijoules since the driver was loaded
    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: total[0] if handle == b"GPU-abc" else 0.0,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    meter = EnergyMeter(torch.device("cuda"))
    machine.now, total[0] = 100.0, total[0] + 3.5e7
    assert meter.power().watts == pytest.approx(350.0) and meter.power().source == "NVML"


def test_a_gpu_without_the_library_is_no_power(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert EnergyMeter(torch.device("cuda")).power() is None
