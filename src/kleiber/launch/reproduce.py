"""`kleiber reproduce`: trains recorded runs again from their configs, and compares the new runs with the records.

A reproduction is *equal* if it has the same weights, bit for bit; where the recorded weights are gone, as in a
runs.jsonl.gz, if all logged values and final metrics are the same. It is *within noise* if its final losses differ by
no more than those of two seeds do, and *different* otherwise.

Runs from which others start are trained first.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from kleiber.config.check import check
from kleiber.config.compose import Composer
from kleiber.config.errors import ConfigError, ExitCode, Status
from kleiber.config.foreign import check_foreign
from kleiber.config.model_size import check_memory
from kleiber.config.nested import map_strings
from kleiber.config.permissions import permitted_data
from kleiber.launch.cell import Cell
from kleiber.launch.local_pool import Process
from kleiber.launch.sweep import referenced_runs
from kleiber.records import folder
from kleiber.records.catalog import Run, read_run, read_runs
from kleiber.records.diff import Diff, diff_runs, final_metrics, first_step_line, is_of_evaluation
from kleiber.records.files import read_json, write_json
from kleiber.records.folder import identity
from kleiber.records.regular_files import DamagedFile, make_folder, path_inside
from kleiber.records.terminal import print_line
from kleiber.runs.recorded_config import with_paths_to_study
from kleiber.types import Config, Json

LEVEL = 0.95  # share of pairs of seeds whose losses differ by less than the noise
TOLERANCE = 0.01  # of a loss, relative, where the sweep does not contain several seeds
FILE = "reproduction.json"


def in_rounds(chosen: Sequence[Run], finished: Mapping[str, Run], home: Path) -> list[list[Run]]:
    """Returns the runs in an order in which they can be trained; those of one round do not need each other.

    A run that another one starts from is trained again too if its weights are gone.
    """
    rounds, needed = [list(chosen)], list(chosen)
    while needed := [base for run in needed for base in missing_bases(run, finished, home)]:
        needed = list({run.name: run for run in needed}.values())
        names = {run.name for run in needed}
        rounds = [needed, *([run for run in runs if run.name not in names] for runs in rounds)]
    return [runs for runs in rounds if runs]


def missing_bases(run: Run, finished: Mapping[str, Run], home: Path) -> list[Run]:
    """Returns the runs of the same folder that `run` starts from, and whose weights are gone."""
    names = referenced_runs(with_paths_to_study(run.config, run.folder), f"{home.absolute()}/")
    return [finished[name] for name in sorted(names) if name in finished and not weights_hashes(finished[name])]


def parse_settings(overrides: Sequence[str]) -> Json:
    """Returns the values of KEY=VALUE by key. Raises ConfigError for text of another form."""
    parsed = Composer("train").parse(list(overrides))
    wrong = next((o for o in parsed if o.is_sweep_override() or o.is_delete() or "/" in o.key_or_group), None)
    if wrong is not None:
        raise ConfigError(f"{wrong.input_line} must be KEY=VALUE, such as callbacks.checkpoints.remote=null")
    return {override.key_or_group: override.value() for override in parsed}


def node_with(config: Config, key: str) -> Json | None:
    """Returns the node of a config that has the last part of a dotted key; None where there is none."""
    *outer, last = key.split(".")
    node: object = config
    for name in outer:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) and last in node else None


def with_settings(config: Json, settings: Json) -> Json:
    """Returns a recorded config with other values of the keys that it has.

    Raises ConfigError for a key that can change the result.
    """
    changed = copy.deepcopy(config)
    for key, value in settings.items():
        if (node := node_with(changed, key)) is not None:
            node[key.rpartition(".")[2]] = value
    if identity(changed) != identity(config):
        names = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise ConfigError(f"{names} changes the result: reproduce trains recorded configs, and kleiber train others")
    return changed


def cell_of(run: Run, home: Path, out: Path, rounds: Sequence[Sequence[Run]], settings: Json) -> Cell:
    """Returns the cell that trains a run again, in a folder of the same name in `out`, without loggers.

    It uses as many CPU threads as the recorded run, because sums of floats depend on their number. Raises ConfigError
    if the recorded config does not pass the check of a command line.

    settings  values of the command line by key
    """
    again = {base.name for runs in rounds for base in runs if not weights_hashes(base)}
    config = map_strings(
        with_paths_to_study(run.config, run.folder), lambda text: in_new_folder(text, home.absolute(), out, again)
    )
    config |= {"root": str(out.parent), "name": out.name, "resume": "auto", "dry_run": False}
    config |= {"logger": {}, "launcher": {"_target_": "kleiber.launch.Process"}, "study": None, "design": None}
    config |= {"allow_data": permitted_data() or None}  # in place of what the recorded command allowed
    trainer = dict(config.get("trainer") or {})
    if trainer.get("threads") is None and "accelerator" in trainer:
        trainer["threads"] = (run.summary.get("machine") or {}).get("threads")
    config["trainer"] = trainer
    try:
        config = with_settings(config, settings)
        check(config)
        check_memory(config)
    except ConfigError as error:
        raise ConfigError(f"the recorded config of {run.folder}: {error}") from None
    check_foreign(config, run.folder / "config.yaml", list(settings))
    return Cell(out / run.name, config, run.overrides)


def in_new_folder(text: str, home: Path, out: Path, names: set[str]) -> str:
    """Returns a path through one of the runs `names` in `home`, moved to `out`; any other text as it is."""
    below = text.removeprefix(f"{home}/")
    return f"{out}/{below}" if text != below and below.split("/")[0] in names else text


def weights_hashes(run: Run) -> dict[str, str]:
    """Returns the sha256 of the final weights of each stage, as their checkpoints note it; none where they are gone."""
    hashes = {}
    for stage in run.stages:
        if not stage.get("checkpoint"):
            continue
        with suppress(DamagedFile, KeyError, TypeError):
            meta = path_inside(run.folder, stage["checkpoint"]) / "meta.json"
            if meta.is_file() and meta.with_name("model.safetensors").is_file():
                hashes[stage["name"]] = str(read_json(meta)["sha256"]["model.safetensors"])
    return hashes


class Verdict(StrEnum):
    """The result of a reproduction."""

    EQUAL = "equal"
    WITHIN_NOISE = "within noise"
    DIFFERENT = "different"
    FAILED = "failed"  # the new run did not finish

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of `kleiber reproduce` for the worst verdict of its runs."""
        codes = {Verdict.DIFFERENT: ExitCode.CONTRADICTED, Verdict.FAILED: ExitCode.FAILED}
        return codes.get(self, ExitCode.DONE)


@dataclass(frozen=True)
class Gap:
    """The difference of a final loss between the new and the recorded run.

    limit  difference that is within noise; `source` says where it comes from
    """

    metric: str
    recorded: float | None
    again: float | None
    limit: float
    source: str

    @property
    def is_within(self) -> bool:
        """Whether both runs have the loss, and it differs by no more than the limit."""
        if self.recorded is None or self.again is None:
            return False
        return self.recorded == self.again or abs(self.again - self.recorded) <= self.limit


@dataclass(frozen=True)
class Reproduction:
    """A recorded run beside the run that was trained from its config.

    diff  of the recorded and the new run; None if the new run did not finish, for the reason `error`
    gaps  of the final losses
    """

    run: str
    verdict: Verdict
    diff: Diff | None = None
    gaps: Sequence[Gap] = field(default_factory=list)
    has_equal_weights: bool = False
    error: str = ""

    def to_json(self) -> Json:
        """Returns the entry of the run in reproduction.json."""
        gaps = [vars(gap) for gap in self.gaps]
        diff = None if self.diff is None else self.diff.to_json()
        return {"run": self.run, "verdict": self.verdict, "error": self.error, "losses": gaps, "diff": diff}


Noise = Mapping[str, float]  # the largest difference within noise, by metric


def reproduce(
    source: Path, out: Path | None, cells: int | None, overrides: Sequence[str] = ()
) -> list[Reproduction]:  # fmt: skip
    """Trains the finished runs of `source` again, compares them, and writes reproduction.json to `out`.

    source     a run, a folder of runs, or a runs.jsonl.gz
    out        folder of the new runs; None for one beside the runs, whose name ends in -reproduced
    cells      only the runs that took the least time, at most this many; None for all
    overrides  KEY=VALUE of keys that cannot change the result

    Raises ConfigError where there is no finished run, or a recorded config does not pass the check, or would do what
    only the reader's command line can allow.
    """
    settings = parse_settings(overrides)
    recorded = read_runs(source)
    finished = [run for run in recorded if run.finished]
    if not finished:
        raise ConfigError(f"{source} contains no finished run to reproduce")
    for key, value in settings.items():
        if all(node_with(run.config, key) is None for run in finished):
            raise ConfigError(f"{key}={value}: no recorded config in {source} has this key")
    chosen = sorted(finished, key=lambda run: run.summary.get("seconds") or 0.0)[:cells]
    home = finished[0].folder.parent
    noise = seed_noise(read_runs(home) if home.is_dir() else recorded)
    out = (out or home.with_name(f"{home.name}-reproduced")).expanduser().absolute()
    rounds = in_rounds(chosen, {run.name: run for run in finished}, home)
    planned = [[cell_of(run, home, out, rounds, settings) for run in runs] for runs in rounds]
    for cell in (cell for cells_of_round in planned for cell in cells_of_round):
        if folder.status(cell.folder) == Status.FINISHED:
            folder.set_aside(cell.folder)
        folder.write_config(cell.folder, cell.config, cell.overrides)
    minutes = sum(run.summary.get("seconds") or 0.0 for runs in rounds for run in runs) / 60
    number = sum(map(len, planned))
    named = "the recorded run" if number == 1 else f"{number} recorded runs"
    print_line(f"training {named} again in {out}; the first time took {minutes:.1f} minutes")
    for cells_of_round in planned:
        Process().run(cells_of_round)
    results = [compare_again(run, read_run(out / run.name), noise) for run in chosen]
    entries = [result.to_json() for result in results]
    make_folder(out)  # it is removed where all runs are refused
    write_json(out / FILE, {"schema": "kleiber.reproduction/1", "source": str(source), "runs": entries})
    return results


def seed_noise(runs: Sequence[Run]) -> dict[str, float]:
    """Returns the difference that the losses of two runs with different seeds exceed with probability 1 - LEVEL.

    It follows from the standard deviation over the seeds of each config, pooled over all configs with several seeds;
    empty where there are none.
    """
    from scipy import stats

    groups: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        if run.finished:
            key = json.dumps({**identity(run.config), "seed": None}, sort_keys=True, default=str)
            groups.setdefault(key, []).append(losses(run))
    squares: dict[str, list[float]] = {}
    for group in groups.values():
        for name in group[0]:
            values = [row[name] for row in group if math.isfinite(row.get(name, math.nan))]
            mean = sum(values) / max(1, len(values))
            if len(values) > 1:
                total, freedom = squares.get(name, [0.0, 0])
                squares[name] = [total + sum((v - mean) ** 2 for v in values), freedom + len(values) - 1]
    quantile = (1 + LEVEL) / 2
    return {
        name: float(stats.t.ppf(quantile, freedom)) * math.sqrt(2 * total / freedom)
        for name, (total, freedom) in squares.items()
    }


def losses(run: Run) -> dict[str, float]:
    """Returns the final losses of all stages, or all final metrics of a run without one."""
    metrics = {
        name: value for name, value in final_metrics(run).items() if value is not None and not is_of_evaluation(name)
    }
    return {name: value for name, value in metrics.items() if name.endswith("/loss")} or metrics


def compare_again(recorded: Run, again: Run, noise: Noise) -> Reproduction:
    """Returns the verdict on a run that was trained again, with the differences."""
    if not again.finished:
        reason = str(again.summary.get("error") or f"status {again.status}").partition("\n")[0]
        return Reproduction(recorded.name, Verdict.FAILED, error=reason)
    diff = diff_runs(recorded, again)
    was, now = weights_hashes(recorded), weights_hashes(again)
    gaps = [gap_of(name, value, losses(again).get(name), noise) for name, value in losses(recorded).items()]
    has_equal_weights = bool(was) and was == now
    trained = {name: pair for name, pair in diff.metrics.items() if not (is_of_evaluation(name) and None in pair)}
    has_equal_values = diff.first is None and all(first == second for first, second in trained.values())
    if has_equal_weights or (not was and gaps and has_equal_values):
        verdict = Verdict.EQUAL
    else:
        verdict = Verdict.WITHIN_NOISE if gaps and all(gap.is_within for gap in gaps) else Verdict.DIFFERENT
    return Reproduction(recorded.name, verdict, diff, gaps, has_equal_weights)


def gap_of(metric: str, recorded: float, again: float | None, noise: Noise) -> Gap:
    """Returns the difference of a loss with the largest difference that is within noise."""
    if metric in noise:
        return Gap(metric, recorded, again, noise[metric], f"{LEVEL:.0%} of pairs of seeds differ by less")
    return Gap(
        metric, recorded, again, TOLERANCE * abs(recorded), f"{TOLERANCE:.0%} of the loss; no config has two seeds"
    )


def lines_of(results: Sequence[Reproduction]) -> list[str]:
    """Returns the lines that `kleiber reproduce` prints about the reproductions."""
    lines = [f"{result.verdict:12}  {result.run}: {explain(result)}" for result in results]
    changed: dict[str, None] = {}
    for result in results:
        if result.diff is not None:
            for differences in (result.diff.data, result.diff.code, result.diff.environment):
                pairs = [(name, pair) for name, pair in differences.items() if pair[0] is not None]  # in old records
                changed |= {f"{name} was {was} and is {now}": None for name, (was, now) in pairs}
    lines += [f"changed since the record: {'; '.join(changed)}"] if changed else []
    counts = [(verdict, sum(result.verdict == verdict for result in results)) for verdict in Verdict]
    return [*lines, ", ".join(f"{number} {verdict}" for verdict, number in counts if number)]


def explain(result: Reproduction) -> str:
    """Returns why a reproduction has its verdict."""
    if result.diff is None:
        return result.error
    if result.verdict == Verdict.EQUAL:
        proof = (
            "bit-identical weights" if result.has_equal_weights else "the recorded weights are gone; all metrics equal"
        )
        return f"{proof}; metrics.jsonl: {first_step_line(result.diff)}"
    shown = [
        f"{gap.metric} was {gap.recorded:.6g} and is {'missing' if gap.again is None else f'{gap.again:.6g}'} "
        f"(noise: {gap.limit:.3g}, {gap.source})"
        for gap in result.gaps
        if result.verdict == Verdict.WITHIN_NOISE or not gap.is_within
    ]
    return f"{'; '.join(shown)}; metrics.jsonl: {first_step_line(result.diff)}"


def worst(results: Sequence[Reproduction]) -> ExitCode:
    """Returns the exit code for the worst verdict."""
    return max((result.verdict for result in results), key=list(Verdict).index).exit_code
