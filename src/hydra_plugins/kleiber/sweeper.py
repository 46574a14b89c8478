"""hydra/sweeper=kleiber: the product of the swept values, handed to the launcher at once.

Hydra's basic sweeper composes every cell only to see whether it can, which doubles the time before the first cell
starts; our launcher composes and checks them all anyway before it runs one.
"""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from kleiber.config.errors import ConfigError
from kleiber.config.instantiate import build


@dataclass
class SweeperConf:
    _target_: str = "hydra_plugins.kleiber.sweeper.KleiberSweeper"
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="kleiber", node=SweeperConf, provider="kleiber")


class KleiberSweeper(BasicSweeper):
    """The product of the sweeps in a file (`params`, such as `optimizer.lr: 1e-3,1e-2`), of those on the command line,
    and of the cells of a `design`.

    A key on the command line replaces that key of the file and of the design. A design in rounds plans the cells of a
    round after those of the previous round have run.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        assert self.hydra_context is not None and self.launcher is not None and self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        keys = set(map(key, arguments))
        from_file = [line for line in self._parse_config() if key(line) not in keys]
        overrides: Any = parser.parse_overrides([*from_file, *arguments])
        (cells,) = self.split_arguments(overrides, max_batch_size=None)
        done: list[JobReturn] = []
        for plan in self._rounds([list(cell) for cell in cells]):
            planned = multiplied(plan, cells)
            left = self._study("max_cells")
            if left is not None and len(done) + len(planned) > left:
                print(
                    f"study.max_cells={left}: {len(done) + len(planned) - left} planned cells are left out", flush=True
                )
                planned = planned[: left - len(done)]
            if planned:
                done += self.launcher.launch(planned, initial_job_idx=len(done))
        return done

    def _rounds(self, cells: list[list[str]]) -> Iterator[list[list[str]]]:
        """The design's cells, round by round; one empty cell where there is no design. `cells` multiply them."""
        if self.config is None or self.config.design is None:
            yield [[]]
            return
        from kleiber.studies.designs.grid import Cases, Grid, Sequential

        node: Any = OmegaConf.to_container(self.config.design, resolve=True)
        if self._study("seeds") is not None:
            if "seeds" not in node:
                raise ConfigError(f"study.seeds: design {node['_target_']} chooses its own seeds: remove study.seeds")
            node["seeds"] = self._study("seeds")
        try:
            design: Any = build(node)
            context: Any = None if isinstance(design, Grid | Cases) else self._sweep_context(cells[0], design)
            if not isinstance(design, Sequential):
                yield design.cells(context)
                return
            if not self.config.dry_run:
                self._rehearse(design, context, cells)
            yield from design.rounds(context)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _rehearse(self, design: Any, context: Any, cells: list[list[str]]) -> None:
        """Plans all rounds as a dry run does, where the study fits a law, so that the study can refuse the plan before
        anything is trained. Other studies check the plan when their cells are launched."""
        launcher: Any = self.launcher
        sweep = launcher.sweep
        if not self.config or not self.config.study or not sweep.fits_a_law(self.config.study):
            return
        with redirect_stdout(StringIO()):
            for plan in design.rounds(replace(context, planned=sweep.planned_runs)):
                sweep.plan(multiplied(plan, cells), launcher.compose)
        sweep.check_plan(dict(sweep.planned))
        sweep.planned.clear()

    def _sweep_context(self, first: list[str], design: Any) -> Any:
        """What a design may use: the config of the first cell, and the machine's speed, measured when it is used."""
        from kleiber.config.compose import resolve_config
        from kleiber.launch.price import seconds_per_token
        from kleiber.records.folder import study_folder
        from kleiber.studies.designs.plan import sweep_context

        launcher: Any = self.launcher
        config, _ = resolve_config(launcher.compose(launcher.sweep.composer.prepare(first)))

        def speed(widths: Sequence[int]) -> list[float]:
            shaped = [sized(config, width, getattr(design, "head_dim", 16)) for width in widths]
            costs = [context.size(width).flops_per_token for width in widths]
            return [c / s for c, s in zip(costs, seconds_per_token(shaped), strict=True)]

        planned = launcher.sweep.planned_runs if config["dry_run"] else None
        context = sweep_context(config, study_folder(config), speed, planned)
        return context

    def _study(self, key: str) -> int | None:
        """`study.max_cells` or `study.seeds`, which apply to the sweep and not to its analysis."""
        node = self.config.study if self.config is not None else None
        return None if node is None else node.get(key)


def multiplied(plan: Sequence[Sequence[str]], cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """The product of the design's cells and `cells`; keys of `cells` take precedence."""
    return [
        [*(line for line in planned if key(line) not in map(key, cell)), *cell] for planned in plan for cell in cells
    ]


def sized(config: dict[str, Any], width: int, head_dim: int) -> dict[str, Any]:
    """The config with a model of another width."""
    model = {**config["model"], "width": width}
    if not str((model.get("attention") or {}).get("_target_", "")).endswith("NoMixing"):
        model["num_heads"] = width // head_dim
    return {**config, "model": model, "stages": None}


def key(override: str) -> str:
    return override.lstrip("+").partition("=")[0]
