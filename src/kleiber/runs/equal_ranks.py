"""Compares over all ranks of a run what they must have in common: the config, and the content of what they read.

Ranks with other data, another seed or other weights would train a model that no config describes. The ranks exchange
texts through the store at which they meet, before they join a group, so that nothing waits for a rank that differs.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

from kleiber.config.errors import ConfigError, RankTimeout, listed
from kleiber.config.nested import flatten
from kleiber.types import Config

if TYPE_CHECKING:
    from torch.distributed import Store

ABSENT = "absent"
POLL_SECONDS = 0.01
ROUNDS = itertools.count()  # every rank compares the same things in the same order


def check_equal_configs(config: Config) -> None:
    """Raises ConfigError, on every rank, for a key whose value differs between the ranks of a run."""
    values = {key: str(value) for key, value in flatten(config).items()}
    check_equal(values, config["trainer"].get("rank_timeout"))


def check_equal(values: Mapping[str, str], timeout: float | None = None) -> None:
    """Raises ConfigError, on every rank, where `values` differ between the ranks; it names them and the ranks.

    timeout  seconds that a rank waits for the others; None for 600
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    texts = exchange(json.dumps(dict(values)), 600.0 if timeout is None else timeout)
    differences = describe_differences([json.loads(text) for text in texts])
    if differences:
        raise ConfigError(
            f"the ranks of this run differ: {'; '.join(differences)}. Start every rank with the same overrides, the "
            "same files and the same environment (such as KLEIBER_DATA)"
        )


def exchange(text: str, timeout: float) -> list[str]:
    """Returns the texts of all ranks, in order. Raises RankTimeout where one does not come within `timeout` seconds."""
    from torch.distributed import PrefixStore

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = PrefixStore(f"kleiber/{next(ROUNDS)}", meeting_store(int(os.environ["MASTER_PORT"]), timeout))
    store.set(str(rank), text)
    keys, until = [str(number) for number in range(ranks)], time.monotonic() + timeout
    while not store.check(keys):  # a blocking wait would hold back the signal that ends this process
        if time.monotonic() > until:
            missing = [key for key in keys if not store.check([key])]
            raise RankTimeout(f"rank {listed(missing)} did not start within trainer.rank_timeout={timeout:g} seconds")
        time.sleep(POLL_SECONDS)
    texts = [store.get(key).decode() for key in keys]
    read = store.add("read", 1)
    while rank == 0 and read < ranks and time.monotonic() < until:  # the store may end with this process
        time.sleep(POLL_SECONDS)
        read = store.add("read", 0)
    return texts


@cache
def meeting_store(port: int, timeout: float) -> Store:
    """Returns the store of torchrun's agent, or that of rank 0, at which the ranks of this process meet.

    It stays for the whole process: another rank may be ahead, and have written to it already.

    port  MASTER_PORT, which tells the ranks of one run from those of the next one in this process
    """
    from torch.distributed import TCPStore

    serves = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        port,
        is_master=serves,
        timeout=timedelta(seconds=timeout),
        wait_for_workers=False,  # which would hold back signals too
        multi_tenant=True,  # PyTorch's own store is at the same port
    )


def describe_differences(values: list[dict[str, str]]) -> list[str]:
    """Returns a text for each key that not all ranks have with the same value: which value is on which ranks."""
    texts = []
    for key in dict.fromkeys(name for of_rank in values for name in of_rank):
        ranks: dict[str, list[str]] = {}
        for rank, of_rank in enumerate(values):
            ranks.setdefault(of_rank.get(key, ABSENT), []).append(str(rank))
        if len(ranks) > 1:
            places = (f"{value} on rank {listed(numbers, most=4)}" for value, numbers in ranks.items())
            texts.append(f"{key} is {' and '.join(places)}")
    return texts
