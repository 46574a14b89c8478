"""What the fork server imports before it forks cells: everything a training step needs, and no operation run.

A server that had computed with several threads would deadlock its children (LIBRARIES: forkserver), and one that had
imported wandb or datasets would hold threads of its own.
"""

from kleiber.imports import import_lightning

import_lightning()

import kleiber.lit  # noqa: E402
import kleiber.models.transformer  # noqa: E402
import kleiber.run  # noqa: E402
import kleiber.trainer  # noqa: E402, F401
