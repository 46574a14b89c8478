"""Imports everything that a run imports, for the fork server of `launcher=process`; it runs no operation of PyTorch.

Cells that are forked from the server then start without importing anything. A server that had computed with several
threads would deadlock its children, and a server that had imported wandb or datasets would have threads of its own.
"""

import gc

from kleiber.training.lightning import import_lightning

import_lightning()

import rich.console  # noqa: E402
import rich.table  # noqa: E402, F401

import kleiber.data.corpus  # noqa: E402
import kleiber.data.sources.builtin  # noqa: E402
import kleiber.data.tokenizers  # noqa: E402
import kleiber.launch.local_pool  # noqa: E402
import kleiber.launch.main  # noqa: E402
import kleiber.models.transformer  # noqa: E402
import kleiber.nn.moe  # noqa: E402
import kleiber.nn.routers.expert_choice  # noqa: E402
import kleiber.nn.routers.hash  # noqa: E402
import kleiber.nn.routers.sigmoid  # noqa: E402
import kleiber.nn.routers.sinkhorn  # noqa: E402
import kleiber.nn.routers.topk  # noqa: E402
import kleiber.objectives.clm  # noqa: E402
import kleiber.records.closing_table  # noqa: E402
import kleiber.runs.run  # noqa: E402
import kleiber.runs.stage  # noqa: E402
import kleiber.training.callbacks.after_training  # noqa: E402
import kleiber.training.callbacks.fault_tolerance  # noqa: E402
import kleiber.training.callbacks.log  # noqa: E402
import kleiber.training.loggers  # noqa: E402
import kleiber.training.trainer  # noqa: E402, F401
from kleiber.records.summary import commit, cpu_name, versions  # noqa: E402

# These functions cache facts that are the same for all cells, about the code and the machine.
for fact in (commit, cpu_name, versions):
    fact()
# A child that searched these objects for garbage would copy every page of them.
gc.freeze()
