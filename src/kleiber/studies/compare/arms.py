"""Arms of a comparison: their losses by learning rate and seed, tuning, paired differences, costs and figures.

Runs belong to an arm by `study.arm` of their config. Training speed and latency are the best of an arm's runs, since
other work on the machine only slows a run; a best has no interval. Altair is imported when a figure is drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from kleiber.records.catalog import Run
from kleiber.studies.compare.rows import LOSS
from kleiber.types import Config, Json, Row

if TYPE_CHECKING:
    from kleiber.studies.study import Figures


LRS = 5  # least number of learning rates of a tuned arm
SEEDS = 3  # least number of seeds of a tuned arm
LEVEL = 0.9  # confidence level of intervals


@dataclass(frozen=True)
class Arm:
    """One arm at one number of tokens.

    losses   validation losses by learning rate and seed; infinite for a run that diverged
    best_lr  the rate with the least mean loss, among the rates with the most seeds
    wrong    why the arm is untuned; empty when it is tuned
    facts    parameters, tokens, FLOPs, memory (medians of its runs), and the speeds of the fastest run
    """

    name: str
    losses: Mapping[float, Mapping[int, float]]
    best_lr: float
    wrong: str
    facts: Mapping[str, float]

    @property
    def at_best(self) -> Mapping[int, float]:
        return self.losses[self.best_lr]

    @property
    def mean(self) -> float:
        return sum(self.at_best.values()) / len(self.at_best)

    def row(self) -> Json:
        """A row of the table of arms."""
        summary = {"arm": self.name, "loss": self.mean, "seeds": len(self.at_best), "best lr": self.best_lr}
        return {**summary, "tuned": not self.wrong, "why not": self.wrong, **of_one_row(self.facts)}


def read(runs: Sequence[Run], tokens: float | None = None) -> dict[str, Arm]:
    """The arms of the runs by name, at `tokens` training tokens to 2 % (None: the most that each arm has).

    Raises ValueError where no run of an arm has finished.
    """
    rows = points(runs)
    arms = {}
    for name, part in by_arm(rows).items():
        lengths = [row["tokens"] for row in part if row["loss"] is not None]
        wanted = max(lengths, default=0) if tokens is None else tokens
        near = [row for row in part if row["loss"] is None or abs(row["tokens"] / wanted - 1) < 0.02]
        if any(row["loss"] is not None for row in near):
            arms[name] = arm_from_rows(name, near)
    if not arms:
        at = "" if tokens is None else f" at {tokens:,.0f} tokens"
        raise ValueError(f"no finished run of any arm{at}: this study reads cells that its own design made")
    return arms


def by_arm(rows: Sequence[Json]) -> dict[str, list[Json]]:
    """The rows of each arm, by name and in order of first appearance."""
    names = dict.fromkeys(row["arm"] for row in rows)
    return {name: [row for row in rows if row["arm"] == name] for name in names}


def arm_name(run: Run) -> str | None:
    """The arm that the design of a study gave to a run; None for a run of no arm."""
    return (run.config.get("study") or {}).get("arm")


def points(runs: Sequence[Run], arm_of: Callable[[Run], str | None] = arm_name) -> list[Json]:
    """A row for each leaf of each run that belongs to an arm; the row of a run that diverged has the loss None.

    Raises ValueError where no run belongs to an arm.
    """
    rows = []
    for run in runs:
        config = run.config
        arm = arm_of(run)
        if arm is None or run.status not in ("finished", "diverged"):
            continue
        leaves = run.leaves if run.status == "finished" else []
        for row, stage in zip(run.leaf_rows(), leaves or [{}], strict=False):
            lr = row["lr"] if row["lr"] is not None else config["optimizer"]["lr"]
            loss = row["loss"] if run.status == "finished" else None
            costs = {"memory": memory_bytes(config["model"], stage), "speed": stage.get("tokens_per_s")}
            core = (stage.get("params") or {}).get("embedding")
            costs["core"] = None if core is None else row["active"] - core
            rows.append({**row, **costs, "arm": arm, "lr": lr, "loss": loss, "seed": config["seed"], "source": run})
    if not rows:
        raise ValueError("no run here belongs to an arm: this study reads cells that its own design made")
    return rows


def memory_bytes(model: Config, stage: Json) -> float | None:
    """Bytes for inference at batch size 1 in fp32: the weights, and keys and values of one full context."""
    if not stage.get("params"):
        return None
    width = width_of(model)
    share = 1.0
    if model.get("num_heads") and model.get("num_kv_heads"):
        share = model["num_kv_heads"] / model["num_heads"]
    return 4.0 * (stage["params"]["total"] + 2 * model["depth"] * model["context"] * width * share)


def width_of(model: Config) -> int:
    """The width of a `model` node: `width`, or else aspect x depth."""
    return model.get("width") or model["aspect"] * model["depth"]


def arm_from_rows(name: str, rows: Sequence[Row], higher_is_better: bool = False) -> Arm:
    """The arm of these rows, at its learning rate of best mean over all seeds; a run that diverged is worst."""
    worst = -math.inf if higher_is_better else math.inf
    losses: dict[float, dict[int, float]] = {}
    for row in rows:
        losses.setdefault(row["lr"], {})[row["seed"]] = worst if row["loss"] is None else row["loss"]
    most = max(len(by_seed) for by_seed in losses.values())
    means = {lr: sum(each.values()) / len(each) for lr, each in losses.items() if len(each) == most}
    best = (max if higher_is_better else min)(means, key=lambda lr: means[lr])
    ended = [row for row in rows if row["loss"] is not None]
    facts = {}
    for key in ("active", "core", "params", "tokens", "flops", "memory", "speed"):
        values = [row[key] for row in ended if row[key] is not None]
        if values:
            facts[key] = float(statistics.median(values))
    if "speed" in facts:
        # Other work on the machine only slows a run, so the fastest run is the best estimate.
        facts["speed"] = max(float(row["speed"]) for row in ended if row["speed"] is not None)
        facts["train_s"] = facts["tokens"] / facts["speed"]
    facts |= best_latency(ended)
    return Arm(name, losses, best, untuned(sorted(means), best, most), facts)


def untuned(lrs: Sequence[float], best: float, seeds: int) -> str:
    """Why an arm with these learning rates is untuned; empty when it is tuned."""
    if len(lrs) < LRS:
        return f"{len(lrs)} learning rates, and {LRS} are needed"
    if best in (lrs[0], lrs[-1]):
        return f"its best learning rate {best:g} is the {'least' if best == lrs[0] else 'largest'} that was tried"
    return "" if seeds >= SEEDS else f"{seeds} seeds, and {SEEDS} are needed"


def all_tuned(*arms: Arm) -> bool:
    return not any(arm.wrong for arm in arms)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL) -> Json:
    """Mean of ours - theirs over the common seeds, with Student's interval; no interval below two seeds."""
    seeds = sorted(set(ours) & set(theirs))
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = interval(gaps, level)
    value = sum(gaps) / len(gaps) if gaps else None
    return {"value": value, "lo": low, "hi": high, "seeds": len(gaps), "better on": sum(gap < 0 for gap in gaps)}


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float | None, float | None]:
    """Student's interval of the mean; (None, None) below two values and for values that are not finite."""
    from kleiber.studies.laws.uncertainty import student_quantile

    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None, None
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = student_quantile(n - 1, level) * spread
    return mean - half, mean + half


def format_gap(gap: Row, unit: str = "nats") -> str:
    """A difference as text, `-0.1400 nats, 90% [-0.1500, -0.1300]`, or why it has no interval."""
    if gap["value"] is None:
        return "no seed in common"
    if gap["lo"] is None:
        return f"{gap['value']:+.4f} {unit} (no interval: {gap['seeds']} seed)"
    return f"{gap['value']:+.4f} {unit}, {LEVEL:.0%} [{gap['lo']:+.4f}, {gap['hi']:+.4f}]"


def complaints(arms: Mapping[str, Arm]) -> list[dict[str, str]]:
    """A warning for each arm that is not tuned."""
    text = "the headline excludes arm {}, which is not tuned: {}"
    return [
        {"code": "untuned", "level": "warn", "text": text.format(arm.name, arm.wrong)}
        for arm in arms.values()
        if arm.wrong
    ]


PREFIX = "latency/"  # of the metrics of callbacks=latency: latency/<what>/<rows at once>
AT_ONE = {  # columns of the table of arms
    "prefill tokens/s": "latency/prefill_tokens_per_s/1",
    "decode tokens/s": "latency/decode_tokens_per_s/1",
    "decode p50 (ms)": "latency/decode_p50_ms/1",
    "decode p95 (ms)": "latency/decode_p95_ms/1",
}
BY_BATCH = {
    "prefill tokens/s": "prefill_tokens_per_s",
    "decode tokens/s": "decode_tokens_per_s",
    "bytes while decoding": "memory_bytes",
}
HOW = (  # for the methods of a study
    "Latency, where runs have it (callbacks=latency), was taken of every branch after its last step, in the process "
    "that trained it: greedy decoding of random tokens with a key-value cache, by the weights that were trained, not "
    "compiled; prompts of half the context (at most 128 tokens), as many new tokens (at most 64), 1, 8 and 64 rows at "
    "once. Prefill is the median of three rounds after one that warms up, decode the tokens over the time of all its "
    "steps, p50 and p95 are of single steps, bytes those of weights and cache. Of each speed and time an arm has the "
    "best of its runs, since other work on the machine only slows a run; such a best, and a ratio of two, has no "
    "interval."
)


def best_latency(rows: Sequence[Row]) -> dict[str, float]:
    """The best value of each latency metric over the rows of an arm: the highest speed, the least time and memory."""
    by_metric: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(PREFIX) and value is not None and value == value:
                by_metric.setdefault(name, []).append(float(value))
    return {name: (max if "_per_s" in name else min)(values) for name, values in by_metric.items()}


def of_one_row(facts: Mapping[str, float]) -> dict[str, float]:
    """The facts of an arm with the latency at batch size 1 under readable names; `price` has the other batch sizes."""
    rest = {name: value for name, value in facts.items() if not name.startswith(PREFIX)}
    return rest | {column: facts[name] for column, name in AT_ONE.items() if name in facts}


def price(arms: Mapping[str, Arm], mixture: str) -> list[Json]:
    """A row for each quantity: its value for the mixture, and the ratio to each other arm that has a value."""
    if mixture not in arms:
        return []
    ours, others = arms[mixture], [arm for name, arm in arms.items() if name != mixture]
    rows = []
    for label, name in quantities(ours.facts).items():
        ratios = {f"{mixture} / {arm.name}": ours.facts[name] / arm.facts[name] for arm in others if name in arm.facts}
        if ratios:
            rows.append({"what": label, mixture: ours.facts[name], **ratios})
    return rows


def quantities(facts: Mapping[str, float]) -> dict[str, str]:
    """The facts that are costs: their names by the label of the report."""
    batches = sorted({int(name.rpartition("/")[2]) for name in facts if name.startswith(PREFIX)})
    named = {"training tokens/s": "speed", "bytes of weights and one full context": "memory"}
    for label, key in BY_BATCH.items():
        named |= {f"{label}, {rows} at once": f"{PREFIX}{key}/{rows}" for rows in batches}
    return {label: name for label, name in named.items() if name in facts}


def unmeasured(arms: Mapping[str, Arm]) -> list[dict[str, str]]:
    """A note that names the arms whose runs have no latency."""
    names = [arm.name for arm in arms.values() if not any(fact.startswith(PREFIX) for fact in arm.facts)]
    if not names:
        return []
    text = f"latency was not measured in the runs of {', '.join(names)}; kleiber eval RUN --evals latency does it"
    return [{"code": "latency", "level": "note", "text": text}]


def differences_chart(gaps: Sequence[Row], title: str, measure: str = LOSS) -> Figures:
    """The figure of differences with their intervals; none without a difference."""
    return {"differences": lambda: _figures().differences(gaps, title, measure)} if gaps else {}


def each_arm(arms: Mapping[str, Arm], measure: str = LOSS) -> Figures:
    """The figures of the arms side by side, and of a measure at each learning rate; `measure` labels their axis."""
    return {"arms": lambda: _figures().side_by_side(arms, measure), "tuning": lambda: _figures().tuning(arms, measure)}


def against_loss(name: str, rows: Sequence[Row], x: str, title: str) -> Figures:
    """The figure `name`: the loss of the arms against their column `x`; none without rows."""
    return {name: lambda: _figures().scatter(rows, x, "loss", title)} if rows else {}


def _figures() -> ModuleType:
    from kleiber.studies.compare import figures

    return figures
