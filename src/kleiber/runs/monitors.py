"""Which validation metrics a callback of Lightning can monitor in each stage, checked before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ConfigError, did_you_mean
from kleiber.config.targets import argument
from kleiber.evals.task_scores import bytes_per_target
from kleiber.runs.stage_tree import Stage


def check_monitors(stages: Sequence[Stage]) -> None:
    """Raises ConfigError where a callback such as EarlyStopping monitors what a stage does not measure."""
    for stage in stages:
        names = stage_metrics(stage)
        for key, monitor in monitors(stage.config):
            if monitor not in names:
                where = f" of the stage {stage.name}" if len(stages) > 1 else ""
                raise ConfigError(
                    f"callbacks.{key}.monitor={monitor} must be a metric that validations{where} measure: "
                    f"{', '.join(names)}.{did_you_mean(monitor, names)} To end training at a loss, set "
                    "budget.stop_at_loss=1.6"
                )


def monitors(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Yields key and monitored metric of each callback that is not kleiber's and monitors one."""
    nodes = OmegaConf.to_container(cfg.callbacks, resolve=True)
    assert isinstance(nodes, dict)
    for key, node in nodes.items():
        if isinstance(node, dict) and not str(node["_target_"]).startswith("kleiber."):
            monitor = argument(node, "monitor")
            if isinstance(monitor, str):
                yield str(key), monitor


def stage_metrics(stage: Stage) -> list[str]:
    """Returns the metrics of every validation of a stage: loss, bits per byte of text, and the main metric."""
    objective, names = stage.plan.objective, list[str]()
    for task, held_out in stage.plan.corpus.validation.items():
        bits = [] if bytes_per_target(objective, held_out) is None else ["bits_per_byte"]
        names += [f"val/{task}/{metric}" for metric in dict.fromkeys(["loss", *bits, objective.metric])]
    return names
