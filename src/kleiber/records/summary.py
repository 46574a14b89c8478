"""The results of a run on disk: summary.json, with an entry for each stage.

It is written atomically whenever the state of the run changes; its schema is in summary.schema.json.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kleiber.config.errors import Status
from kleiber.records.environment import commit, versions
from kleiber.records.files import write_json
from kleiber.records.regular_files import DamagedFile
from kleiber.records.summary_file import SCHEMA, SUMMARY, read_summary, set_damaged_aside
from kleiber.records.terminal import print_line
from kleiber.types import Json


class Summary:
    """The summary in a run's folder. A run that is started again keeps the finished stages."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / SUMMARY
        self.damage: DamagedFile | None = None
        try:
            self.values: Json = read_summary(folder) or {}
        except DamagedFile as error:
            self.values, self.damage = {}, error
        self._before = float(self.values.get("seconds") or 0.0)
        self._began = time.monotonic()

    def start(self, **facts: object) -> None:
        """Marks the run as running. Renames a damaged summary.json, and says so.

        facts  run_id, name, study, config_hash, overrides, seed and machine
        """
        if self.damage is not None:
            place = set_damaged_aside(self.path).name
            text = f"warning: {self.damage}; it is now {place}, and its stages count as not trained"
            print_line(text, err=True)
            self.damage = None
        defaults = {"started": datetime.now(UTC).isoformat(timespec="seconds"), "stages": [], "R": None}
        renewed = {"schema": SCHEMA, "status": Status.RUNNING, "error": None, "versions": versions(), **commit()}
        self.values = {**defaults, **self.values, **renewed, **facts}
        self.update()

    def update(self, **values: object) -> None:
        """Sets top-level entries, and writes the file."""
        self.values.update(values)
        self.values["seconds"] = round(self._before + time.monotonic() - self._began, 3)
        write_json(self.path, self.values)

    def finished_stages(self) -> dict[str, Json]:
        """Returns the records of the run's finished stages, as in summary.json, by the name of the stage."""
        return {s["name"]: s for s in self.values.get("stages") or [] if s["status"] == Status.FINISHED}

    def put_stage(self, stage: Json, metrics: Mapping[str, tuple[str, bool]] | None = None) -> None:
        """Adds a stage, or replaces the stage of the same name, and writes the file.

        metrics  as in `score_matrix`; the score matrix is written in the same moment, so that no kill falls in between
        """
        stages = [*(s for s in self.values["stages"] if s["name"] != stage["name"]), stage]
        self.update(stages=stages, **({} if metrics is None else {"R": score_matrix(metrics, stages)}))


Scores = dict[str, float]  # by metric key, such as val/<task>/loss


@dataclass
class StageRecord:
    """The entry of one stage in summary.json. The keys are those of summary.schema.json.

    parent            name of the stage that this stage starts from; None for the first stage
    trunk             the same, if this stage continues the steps of its parent; None otherwise
    tokens, samples, flops  training so far, counted from the root of the tree of stages
    steps             optimizer steps of this stage alone
    seconds           training time without evaluation; None where no callback measures it
    cost              energy and price of the device-seconds, see `kleiber.config.cost.cost_of`
    stopped_at_loss   the target loss that ended training early
    rollbacks         by `callbacks.stability`: "step" of the alarm, step "to" which training went back, and "reason"
    privacy           epsilon, delta and settings of DP-SGD; None without it
    metrics, start_metrics  the latest scores, and those before the first step
    curve             one row of scores, with its "step", for every step at which the model was scored
    checkpoint        path of the last step's checkpoint, relative to the run's folder
    """

    name: str
    parent: str | None = None
    trunk: str | None = None
    status: str = "running"
    branch_step: int | None = None
    objective: str = ""
    tasks: list[str] = field(default_factory=list)
    data: Json = field(default_factory=dict)
    params: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    unique_tokens: int = 0
    samples: int = 0
    steps: int = 0
    batch_tokens: int = 0
    lr: float = 0.0
    stopped_at_loss: float | None = None
    rollbacks: list[Json] = field(default_factory=list)
    privacy: Json | None = None
    flops: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    device_seconds: float | None = None
    evaluation_seconds: float = 0.0
    tokens_per_s: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int = 0
    cost: Json | None = None
    metrics: Scores = field(default_factory=dict)
    start_metrics: Scores = field(default_factory=dict)
    curve: list[Scores] = field(default_factory=list)
    checkpoint: str | None = None

    @classmethod
    def untrained(
        cls, name: str, params: dict[str, int] | None = None, tokenizer: str = "", checkpoint: str | None = None
    ) -> StageRecord:
        """Returns the record of a finished stage of zero steps, such as that of an imported model.

        params      numbers of parameters; None: zeros
        tokenizer   hash of the tokenizer
        """
        data = {"name": "unknown", "config": "", "tokens": 0, "bytes": 0}
        data |= dict.fromkeys(("hash", "tokenizer_hash"), tokenizer)
        counts = dict.fromkeys(("total", "active", "non_embedding", "embedding", "trainable"), 0) | (params or {})
        flops: Scores = dict.fromkeys(("model", "executed", "six_nd"), 0.0)
        return cls(name, None, None, Status.FINISHED, data=data, params=counts, flops=flops, checkpoint=checkpoint)

    def add_row(self, step: int, scores: Scores) -> None:
        """Adds the scores at a step to the curve."""
        self.curve.append({"step": step, **scores})

    def add_scores(self, scores: Scores, step: int | None = None) -> None:
        """Adds scores to the metrics and, if `step` is given, to the last row of the curve, which must be of `step`."""
        self.metrics = {**self.metrics, **scores}
        if step is not None:
            assert self.curve and self.curve[-1]["step"] == step, f"step {step} is not the last row of the curve"
            self.curve[-1].update(scores)

    def add_to_row(self, step: int, scores: Scores) -> None:
        """Adds scores to the metrics and to the row of `step`, which may be a new one."""
        if not self.curve or self.curve[-1]["step"] != step:
            self.add_row(step, {})
        self.add_scores(scores, step)

    def scores_of(self, step: int) -> Scores:
        """The val/... scores of the tasks at `step`, if the last row of the curve is of that step; {} otherwise."""
        row = self.curve[-1] if self.curve else {}
        if row.get("step") != step:
            return {}
        return {key: value for key, value in row.items() if key.startswith("val/")}

    @property
    def skipped_steps(self) -> int:
        """Steps whose data was left out by rollbacks."""
        return sum(entry["step"] - entry["to"] for entry in self.rollbacks)

    def reaches(self, loss: float, step: int) -> bool:
        """Whether every task of the stage has a score at `step` with a loss of at most `loss`."""
        scores = self.scores_of(step)
        return all(scores.get(f"val/{task}/loss", float("inf")) <= loss for task in self.tasks)

    def to_json(self) -> Json:
        """The stage's entry of summary.json."""
        return asdict(self)


def score_matrix(metrics: Mapping[str, tuple[str, bool]], stages: Sequence[Json]) -> Json:
    """The entry "R" of summary.json: the main metric of every task after every stage.

    matrix[i][j] is the score of task j after stage i, baseline[j] that before the first step; None where not scored.

    metrics  by task, the name of its main metric and whether a higher value is better
    stages   the stages' entries of summary.json, in order
    """
    keys = {task: f"val/{task}/{name}" for task, (name, _) in metrics.items()}
    return {
        "tasks": list(keys),
        "stages": [stage["name"] for stage in stages],
        "metric": keys,
        "higher_is_better": {task: higher for task, (_, higher) in metrics.items()},
        "matrix": [[stage["metrics"].get(key) for key in keys.values()] for stage in stages],
        "baseline": [stages[0]["start_metrics"].get(key) for key in keys.values()],
    }
