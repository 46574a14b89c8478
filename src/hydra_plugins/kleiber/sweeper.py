"""hydra/sweeper=kleiber: the product of the swept values, handed to the launcher at once.

Hydra's basic sweeper composes every cell only to see whether it can, which doubles the time before the first cell
starts; our launcher composes and checks them all anyway before it runs one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.utils import instantiate


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.kleiber.sweeper.KleiberSweeper"
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="kleiber", node=SweeperConf, provider="kleiber")


class KleiberSweeper(BasicSweeper):
    """`params` are sweeps that stand in a file, as `optimizer.lr: 1e-3,1e-2`; the command line's multiply them.

    So do the cells of a `design`. A key that the command line sweeps is taken from there, whatever the design says.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        assert self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given: Any = parser.parse_overrides([*self._parse_config(), *arguments])
        (cells,) = self.split_arguments(given, max_batch_size=None)
        return self.launcher.launch(self._planned(cells), initial_job_idx=0)

    def _planned(self, cells: Sequence[Sequence[str]]) -> list[list[str]]:
        """The product of the design's cells, where there is a design, and those given."""
        node = self.config.design if self.config is not None else None
        if node is None:
            return [list(cell) for cell in cells]
        return [
            [*(line for line in plan if key(line) not in map(key, cell)), *cell]
            for plan in instantiate(node).cells()
            for cell in cells
        ]


def key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]
