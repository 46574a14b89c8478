"""Imports everything that a run imports, for the fork server of `launcher=process`; it runs no operation of PyTorch.

Cells that are forked from the server then start without importing anything. A server that had computed with several
threads would deadlock its children, and a server that had imported wandb or datasets would have threads of its own.
"""

import gc
import os
import signal
from importlib import import_module

from kleiber.config.errors import exit_at_once, exit_on_signals

exit_on_signals()  # before the imports, which take seconds
from kleiber.nn import routers  # noqa: E402
from kleiber.records.environment import commit, cpu_name, versions  # noqa: E402
from kleiber.training.lightning import import_lightning  # noqa: E402

SERVER = os.getpid()
MODULES = (
    *(f"kleiber.nn.routers.{module}" for module in set(routers.EXPORTS.values())),
    "rich.console",
    "rich.table",
    "kleiber.data.corpus",
    "kleiber.data.builtin",
    "kleiber.data.text",
    "kleiber.data.tokenizers",
    "kleiber.launch.local_pool",
    "kleiber.launch.main",
    "kleiber.models.transformer",
    "kleiber.nn.moe",
    "kleiber.objectives.clm",
    "kleiber.records.closing_table",
    "kleiber.runs.banner",
    "kleiber.runs.evaluate",
    "kleiber.runs.evaluation_subject",
    "kleiber.runs.inputs",
    "kleiber.runs.run",
    "kleiber.runs.run",
    "kleiber.runs.stage",
    "kleiber.training.callbacks.classes",
    "kleiber.training.callbacks.fault_tolerance",
    "kleiber.training.callbacks.log",
    "kleiber.training.callbacks.progress",
    "kleiber.training.callbacks.samples",
    "kleiber.training.callbacks.stability",
    "kleiber.training.loggers",
    "kleiber.training.mirrors",
    "kleiber.training.trainer",
)
import_lightning()
for module in MODULES:
    import_module(module)

# These functions cache facts that are the same for all cells, about the code and the machine.
for fact in (commit, cpu_name, versions):
    fact()


def end_cell(number: int, frame: object) -> None:
    """Ends a cell that has not begun to train; the server goes on, since it reports how the cells end."""
    if os.getpid() != SERVER:
        exit_at_once(number, frame)


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end_cell)
# A child that searched these objects for garbage would copy every page of them.
gc.freeze()
