"""The arms of `kleiber compare --arm KEY`: runs with the same value of a key, or the same choice of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError, did_you_mean, listed
from kleiber.config.nested import flatten
from kleiber.config.targets import signature
from kleiber.records.folder import identity
from kleiber.types import Config

if TYPE_CHECKING:
    from kleiber.records.catalog import Run
    from kleiber.studies.compare.arms import ArmOf

MAY_VARY = ("seed", "budget", "stages", "eval")  # nodes of the config in which the runs of one arm may differ
OF_THE_LOSS = ("data.", "eval.tokens")  # what two arms must have in common for their losses to be of the same text
BY_DESIGN = "study.arm"
LEARNING_RATE = "optimizer.lr"


def arms_by_key(key: str, runs: Sequence[Run]) -> ArmOf:
    """Returns the function that names the arm of a run: `KEY=value`, or the name that a design gave to the arm.

    key  a key of the config, or a group such as `model` or `model/attention`, whose choices are the arms

    Raises ValueError for a key that no run has, where it has fewer than two values, and where runs with one value
    differ in other keys than those of MAY_VARY, since they would be several arms.
    """
    if not runs:
        raise ValueError(f"--arm {key}: there is no run to compare (the folder of a run has a config.yaml)")
    values = arm_values(key, runs)
    distinct = dict.fromkeys(map(str, values.values()))
    if key == BY_DESIGN and not any(value is not None for value in values.values()):
        raise ValueError(f"these runs belong to no study=compare: set --arm KEY{differing_keys(runs)}")
    if len(distinct) < 2:
        value = next(iter(distinct))
        raise ValueError(f"--arm {key}: all of the {len(runs)} runs have the value {value}{differing_keys(runs)}")
    if key == BY_DESIGN:
        return lambda run: None if values[run.folder] is None else str(values[run.folder])
    for value in distinct:
        varied = varied_keys([run for run in runs if str(values[run.folder]) == value])
        further = [name for name in varied if name.partition(".")[0] not in MAY_VARY]
        if further:
            raise ValueError(
                f"--arm {key}: the runs with the value {value} also differ in {', '.join(further)}: name folders whose "
                "runs differ in this key, the learning rate, the seed and the number of tokens alone"
            )
    last = key.replace("/", ".").rpartition(".")[2]
    return lambda run: f"{last}={values[run.folder]}"


def arm_values(key: str, runs: Sequence[Run]) -> dict[Path, object]:
    """Returns the value of a key, or the choice of a group, by the folder of each run."""
    if any(key in flatten(run.config) for run in runs) or key == BY_DESIGN:
        return {run.folder: value_of(run.config, key) for run in runs}
    group = key.replace(".", "/")
    if Composer().choices(group):
        return {run.folder: choices_of(choosing(run.overrides)).get(group) for run in runs}
    values = {run.folder: value_of(run.config, key) for run in runs}
    if all(value is None for value in values.values()):
        names = dict.fromkeys(name for run in runs for name in flatten(identity(run.config)))
        same = [name for name in names if name.endswith(f".{key}")]  # of which the key is the last part
        near = did_you_mean(same[0] if same else key, names).replace(" ", ". ", 1) or differing_keys(runs)
        raise ValueError(f"--arm {key}: no run has this key, and it is no group{near}")
    return values


def value_of(config: Config, key: str) -> object:
    """Returns the value of a key of a config; where it is not set, the default of the class that has it, or None."""
    node: object = config
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        return None
    if name in node or "_target_" not in node:
        return node.get(name)
    try:
        parameter = signature(str(node["_target_"])).parameters.get(name)
    except ConfigError:  # a class that another version has, or of a package that is not allowed here
        return None
    return parameter.default if parameter else None


def choosing(overrides: Sequence[str]) -> tuple[str, ...]:
    """Returns the overrides that may choose from a group."""
    keys = {line: line.lstrip("+~").partition("=")[0] for line in overrides}
    return tuple(line for line, name in keys.items() if "." not in name and name not in ("name", "root", "seed"))


@cache
def choices_of(overrides: tuple[str, ...]) -> dict[str, object]:
    """Returns the choice of every group, such as {"model/attention": "full"}, with these overrides."""
    from hydra.types import RunMode

    composer = Composer()
    lines = composer.prepare(list(overrides))
    chosen = composer.loader.compute_defaults_list(composer.config_name, lines, RunMode.RUN).overrides.known_choices
    return dict(chosen)


def claims_of_direction(
    better: str | None, measure: str, arms: Sequence[str], runs: Sequence[Run]
) -> list[dict[str, str]]:
    """Returns the claim that the second arm is better than the first, where `better` tells what that means.

    better  "lower" or "higher"; None where the runs tell which value of the measure is better

    Raises ValueError where neither tells, and where they contradict each other.
    """
    from kleiber.studies.compare.measures import score_of

    direction = score_of(runs, measure).better
    if better not in ("lower", "higher", None):
        raise ValueError(f"--better {better} must be lower or higher")
    if better is None and direction == "none" and any(measure in run.metrics for run in runs):
        raise ValueError(
            f"--measure {measure} does not tell whether a lower or a higher value is better: set --better lower or "
            "--better higher"
        )
    if direction != "none" and better not in (direction, None):
        raise ValueError(f"--better {better}: the {direction} value of {measure} is better; remove --better")
    return [{"arm": arms[1], "against": arms[0], "direction": better}] if better and len(arms) > 1 else []


def further_differences(key: str, runs: Sequence[Run]) -> list[str]:
    """Returns the keys other than `key` in which arms of `arms_by_key` differ; none for the arms of a design.

    Raises ValueError where they differ in what their losses are of, unless `key` is a key of the data.
    """
    if key == BY_DESIGN:
        return []
    here = key.replace("/", ".")
    varied = [name for name in varied_keys(runs) if name != here and not name.startswith(f"{here}.")]
    of_the_loss = [name for name in varied if name.startswith(OF_THE_LOSS)]
    if of_the_loss and not key.startswith("data"):
        raise ValueError(
            f"--arm {key}: the arms also differ in {', '.join(of_the_loss)}, so their losses are of different texts: "
            "name folders whose runs have the same data and eval.tokens"
        )
    return [name for name in varied if name.partition(".")[0] not in MAY_VARY]


def differing_keys(runs: Sequence[Run]) -> str:
    """Returns the end of an error: the keys in which runs differ, other than the tuned and the repeated ones."""
    names = [name for name in varied_keys(runs) if name.partition(".")[0] not in MAY_VARY]
    if names:
        return f"; keys that differ between the runs: {listed(names)}"
    repeated = [
        name for name in (LEARNING_RATE, *MAY_VARY) if len({str(value_of(run.config, name)) for run in runs}) > 1
    ]
    return f"; the runs differ in {listed(repeated)} alone" if repeated else "; the runs differ in no key"


def varied_keys(runs: Sequence[Run]) -> list[str]:
    """Returns the keys of the config, without the learning rate, in which runs differ, a default being a value."""
    configs = [identity(run.config) for run in runs]
    keys = {name for config in configs for name in flatten(config)} - {LEARNING_RATE}
    return sorted(name for name in keys if len({str(value_of(config, name)) for config in configs}) > 1)
