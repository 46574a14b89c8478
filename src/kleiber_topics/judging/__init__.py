"""Judging: people and simulated annotators who compare answers, and what models learn from their preferences."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Variety": "annotators",
    "WordShare": "annotators",
    "Judged": "judged",
    "WinRate": "win_rate",
}
COMMANDS = {"judge": "command.judge"}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
