"""Imports everything that a run imports, for the fork server of `launcher=process`; it runs no operation of PyTorch.

Cells that are forked from the server then start without importing anything. A server that had computed with several
threads would deadlock its children, and a server that had imported wandb or datasets would have threads of its own.
"""

import gc
from importlib import import_module

from kleiber.nn import routers
from kleiber.records.environment import commit, cpu_name, versions
from kleiber.training.lightning import import_lightning

MODULES = (
    *(f"kleiber.nn.routers.{module}" for module in set(routers.EXPORTS.values())),
    "rich.console",
    "rich.table",
    "kleiber.data.corpus",
    "kleiber.data.builtin",
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
    "kleiber.runs.stage",
    "kleiber.training.callbacks.after_training",
    "kleiber.training.callbacks.fault_tolerance",
    "kleiber.training.callbacks.log",
    "kleiber.training.callbacks.progress",
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
# A child that searched these objects for garbage would copy every page of them.
gc.freeze()
