"""Configs: composing one from a command line, checking it, and building objects from it. Imports no torch."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.config.child_process import python_command, safe_environment
    from kleiber.config.compose import read_choice
    from kleiber.config.errors import ExitCode, Preempted, Status, did_you_mean, listed, on_preemption, preempted_by
    from kleiber.config.foreign import check_foreign
    from kleiber.config.hub import is_name, local_copy, reachable
    from kleiber.config.labels import readable
    from kleiber.config.model_size import vocabulary_of, width_of
    from kleiber.config.permissions import permit_data
    from kleiber.config.stages import Quantity, quantity
    from kleiber.config.targets import build

__all__, __getattr__ = lazy_exports(__name__, {}, __file__)
