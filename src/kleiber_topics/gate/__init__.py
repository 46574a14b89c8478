"""Gate: a stream of proposed changes to a training recipe, of which only real gains are kept."""

from kleiber.types import lazy_exports

EXPORTS: dict[str, str] = {}
COMMANDS = {"gate": "command.gate"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
