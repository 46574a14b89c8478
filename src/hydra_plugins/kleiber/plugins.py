"""Hydra's sweeper and launcher of kleiber: `hydra/sweeper=kleiber` plans the cells of a sweep, `hydra/launcher=kleiber`
hands them to `kleiber.launch.sweep.Sweep`.

Hydra's basic sweeper composes every cell only to see whether it can, which doubles the time before the first cell
starts; `Sweep` composes and checks all cells anyway. How cells are run is the choice of the ordinary group `launcher`,
so that `launcher=basic` works like any other override.

This module has no `from __future__ import annotations`: Hydra executes it before it is in sys.modules, where
`dataclasses` would look up annotations that are strings.
"""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kleiber.config.check import check_node
from kleiber.config.errors import ConfigError
from kleiber.config.targets import build
from kleiber.records.terminal import print_line
from kleiber.types import Json

if TYPE_CHECKING:
    from kleiber.studies.designs.design import Design, Sequential, SweepContext


@dataclass
class LauncherConf:
    """The config node `hydra.launcher`."""

    _target_: str = "hydra_plugins.kleiber.plugins.KleiberLauncher"


@dataclass
class SweeperConf:
    """The config node `hydra.sweeper`.

    params  swept values of a config file by key, such as {"optimizer.lr": "1e-3,1e-2"}
    """

    _target_: str = "hydra_plugins.kleiber.plugins.KleiberSweeper"
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/launcher", name="kleiber", node=LauncherConf, provider="kleiber")
ConfigStore.instance().store(group="hydra/sweeper", name="kleiber", node=SweeperConf, provider="kleiber")


class KleiberLauncher(Launcher):
    """Runs all cells of a sweep, whether others fail or not. The return value of a job is its exit code."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before the first cells are launched."""
        from kleiber.launch.sweep import Sweep

        assert isinstance(task_function, Sweep)
        self.context, self.config, self.sweep = hydra_context, config, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the cells with these overrides, and returns a job for each of them."""
        codes = self.sweep.run([list(overrides) for overrides in job_overrides], self.compose)
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=code)
            for overrides, code in zip(job_overrides, codes, strict=True)
        ]

    def compose(self, overrides: list[str]) -> DictConfig:
        """Composes the config of one cell, including the node `hydra`."""
        return self.context.config_loader.load_sweep_config(self.config, overrides)


class KleiberSweeper(BasicSweeper):
    """Plans the product of the sweep in a config file (`params`), of that on the command line, and of a design's cells.

    A key on the command line replaces that key in the file and in the design. A design in rounds plans the cells of a
    round after those of the round before have run.
    """

    def __init__(self, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Runs the sweep of the overrides `arguments`, and returns a job for each cell."""
        assert self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        keys = set(map(override_key, arguments))
        from_file = [line for line in self._parse_config() if override_key(line) not in keys]
        overrides = parser.parse_overrides([*from_file, *arguments])
        (cells,) = self.split_arguments(overrides, max_batch_size=None)
        jobs: list[JobReturn] = []
        for design_cells in self._rounds([list(cell) for cell in cells]):
            planned = multiply(design_cells, cells)
            max_cells = self._study_setting("max_cells")
            if max_cells is not None and len(jobs) + len(planned) > max_cells:
                excess = len(jobs) + len(planned) - max_cells
                print_line(f"study.max_cells={max_cells}: {excess} planned cells are not run")
                planned = planned[: max_cells - len(jobs)]
            if planned:
                jobs += self.launcher.launch(planned, initial_job_idx=len(jobs))
        return jobs

    def _rounds(self, cells: list[list[str]]) -> Iterator[list[list[str]]]:
        """Yields the cells of the design round by round; a single empty cell without a design.

        cells  of the sweep, by which those of the design will be multiplied
        """
        assert self.config is not None
        if self.config.study is not None:
            check_node("study", self._node("study"))
        if self.config.design is None:
            yield [[]]
            return
        from kleiber.studies.designs.design import Sequential
        from kleiber.studies.designs.grid import Cases, Grid

        node = self._node("design")
        seeds = self._study_setting("seeds")
        if seeds is not None:
            node["seeds"] = seeds
        check_node("design", node)
        try:
            design = build(node)
            if isinstance(design, Grid | Cases):
                yield design.cells()
                return
            context = self._sweep_context(cells[0], design)
            if not isinstance(design, Sequential):
                yield design.cells(context)
                return
            if not self.config.dry_run:
                self._check_rounds(design, context, cells)
            yield from design.rounds(context)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _check_rounds(self, design: "Sequential", context: "SweepContext", cells: list[list[str]]) -> None:
        """Plans all rounds of a design as a dry run does, so that the study can refuse the plan before any training.

        Does nothing for a study that refuses no plan. The cells of each round are checked when they are launched.
        """
        launcher = self._kleiber_launcher()
        sweep = launcher.sweep
        assert self.config is not None
        if not self.config.study or not sweep.checks_plan(self.config.study):
            return
        with redirect_stdout(StringIO()):
            for design_cells in design.rounds(replace(context, planned=sweep.planned_runs)):
                sweep.plan(multiply(design_cells, cells), launcher.compose)
        sweep.check_plan(dict(sweep.planned))
        sweep.planned.clear()

    def _sweep_context(self, first: list[str], design: "Design | Sequential") -> "SweepContext":
        """Returns what a design plans with: the config of the first cell, and a function that measures speed."""
        from kleiber.config.compose import resolve_config
        from kleiber.launch.price import seconds_per_token
        from kleiber.records.folder import study_folder
        from kleiber.studies.designs.design import sweep_context

        launcher = self._kleiber_launcher()
        config, _ = resolve_config(launcher.compose(launcher.sweep.composer.prepare(first)))
        head_dim = vars(design).get("head_dim", 16)

        def flops_per_second(widths: Sequence[int]) -> list[float]:
            seconds = seconds_per_token([with_width(config, width, head_dim) for width in widths])
            flops = [context.size(width).flops_per_token for width in widths]
            return [f / s for f, s in zip(flops, seconds, strict=True)]

        planned = launcher.sweep.planned_runs if config["dry_run"] else None
        context = sweep_context(config, study_folder(config), flops_per_second, planned)
        return context

    def _kleiber_launcher(self) -> KleiberLauncher:
        assert isinstance(self.launcher, KleiberLauncher)
        return self.launcher

    def _node(self, key: str) -> Json:
        """Returns a node of the config as plain data."""
        assert self.config is not None
        node = OmegaConf.to_container(self.config[key], resolve=True)
        assert isinstance(node, dict)
        return {str(name): value for name, value in node.items()}

    def _study_setting(self, key: str) -> int | None:
        """The value of `study.max_cells` or `study.seeds`, which change the sweep and not its analysis."""
        assert self.config is not None
        return None if self.config.study is None else self.config.study.get(key)


def multiply(design_cells: Sequence[Sequence[str]], cells: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the product of the cells of a design and of a sweep, whose keys take precedence."""
    product = []
    for design_cell in design_cells:
        for cell in cells:
            keys = set(map(override_key, cell))
            product.append([*(line for line in design_cell if override_key(line) not in keys), *cell])
    return product


def with_width(config: Json, width: int, head_dim: int) -> Json:
    """Returns the config with a model of another width, and without stages."""
    model = {**config["model"], "width": width}
    if not str((model.get("attention") or {}).get("_target_", "")).endswith("NoMixing"):
        model["num_heads"] = width // head_dim
    return {**config, "model": model, "stages": None}


def override_key(override: str) -> str:
    """Returns the key of an override, such as "seed" of "+seed=1"."""
    return override.lstrip("+").partition("=")[0]
