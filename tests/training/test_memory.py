"""The free memory that a rank may use."""

import torch

from kleiber.training import memory


def test_the_ranks_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory_bytes", lambda: 4096)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert memory.free_memory_bytes(torch.device("cpu")) == 4096
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_memory_bytes(torch.device("cpu")) == 1024
