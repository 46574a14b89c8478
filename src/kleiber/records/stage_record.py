"""The result of one stage: its entry of summary.json, which everything that measures the stage adds to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from kleiber.types.plain import Json

Scores = dict[str, float]  # by metric key, such as val/<task>/loss


@dataclass
class StageRecord:
    """What summary.json says of a stage. The keys are those of summary.schema.json.

    parent, trunk     the stage it begins with, and the same where it continues that stage's steps
    tokens, samples   trained on since the root of the tree of stages, as are `flops`; `steps` are the stage's alone
    seconds           of training, without evaluation; None where no callback measures them
    stopped_at_loss   the target that ended training early
    metrics           the latest scores; `start_metrics` those before the first step
    curve             a row of scores for every step that was scored, with its "step"
    checkpoint        of the last step, relative to the run's folder
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
    flops: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    device_seconds: float | None = None
    evaluation_seconds: float = 0.0
    tokens_per_s: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int = 0
    metrics: Scores = field(default_factory=dict)
    start_metrics: Scores = field(default_factory=dict)
    curve: list[Scores] = field(default_factory=list)
    checkpoint: str | None = None

    def add_row(self, step: int, scores: Scores) -> None:
        """Adds a row to the curve."""
        self.curve.append({"step": step, **scores})

    def add_scores(self, scores: Scores, step: int | None = None) -> None:
        """Adds scores to the metrics, and to the curve's row of `step`, which must be the last one."""
        self.metrics = {**self.metrics, **scores}
        if step is not None:
            assert self.curve and self.curve[-1]["step"] == step, f"step {step} is not the last row of the curve"
            self.curve[-1].update(scores)

    def scores_of(self, step: int) -> Scores:
        """The val/... scores of the tasks at `step`, if that is the last row of the curve; {} otherwise."""
        row = self.curve[-1] if self.curve else {}
        return {key: value for key, value in row.items() if key.startswith("val/")} if row.get("step") == step else {}

    def reaches(self, loss: float, step: int) -> bool:
        """Whether every task of the stage was scored at `step`, and at `loss` or below."""
        scores = self.scores_of(step)
        return all(scores.get(f"val/{task}/loss", float("inf")) <= loss for task in self.tasks)

    def to_json(self) -> Json:
        """The stage's entry of summary.json."""
        return asdict(self)


def score_matrix(metrics: Mapping[str, tuple[str, bool]], stages: Sequence[Json]) -> Json:
    """R of summary.json: matrix[i][j] is the main metric of task j after stage i, null where it was not scored.

    `baseline` is that before the first step.

    metrics  name of each task's main metric, and whether a higher value is better, by task
    stages   their entries of summary.json, in order
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
