"""What the fork server imports before it forks cells: all that a run imports, and no operation of PyTorch run.

A server that had computed with several threads would deadlock its children (LIBRARIES: forkserver), and one that had
imported wandb or datasets would hold threads of its own.
"""

import gc

from kleiber.imports import import_lightning

import_lightning()

import rich.console  # noqa: E402
import rich.table  # noqa: E402, F401

import kleiber.callbacks.classes  # noqa: E402
import kleiber.callbacks.log  # noqa: E402
import kleiber.callbacks.progress  # noqa: E402
import kleiber.callbacks.routing  # noqa: E402
import kleiber.callbacks.samples  # noqa: E402
import kleiber.callbacks.stability  # noqa: E402
import kleiber.data.builtin  # noqa: E402
import kleiber.data.pretrained  # noqa: E402
import kleiber.launch  # noqa: E402
import kleiber.loggers  # noqa: E402
import kleiber.matrix  # noqa: E402
import kleiber.models.transformer  # noqa: E402
import kleiber.nn.moe  # noqa: E402
import kleiber.nn.routers  # noqa: E402
import kleiber.objectives.clm  # noqa: E402
import kleiber.pool  # noqa: E402
import kleiber.report  # noqa: E402
import kleiber.run  # noqa: E402
import kleiber.stage  # noqa: E402
import kleiber.trainer  # noqa: E402, F401
from kleiber.summary import commit, cpu_name, versions  # noqa: E402

# Facts of all cells alike: of the code that was just imported, and of the machine.
for fact in (commit, cpu_name, versions):
    fact()
# What is here stays: no child looks through it for garbage, which would copy every page of it.
gc.freeze()
