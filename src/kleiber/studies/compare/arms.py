"""TODO.

What an arm costs beside its loss: how fast it trains and decodes, and the memory that it decodes in.

Numbers of a machine: each is the best of an arm's runs, since other work on the machine only slows a run. Such a best
has no interval, and none is made up.

The figures that studies of arms share, by name, each made when someone looks.

Drawing needs the extra `report`, so altair is imported by the figure and not by the study. It decides nothing: where
no difference could be taken there is no figure of differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kleiber.records.catalog import Run

if TYPE_CHECKING:
    pass


LRS = 5  # learning rates that an arm needs to count as tuned


SEEDS = 3  # and seeds, to have an interval worth the name


LEVEL = 0.9


@dataclass(frozen=True)
class Arm:
    """One arm at one number of tokens.

    losses   by learning rate and seed; a cell that diverged counts as infinite
    best_lr  least mean loss over seeds, among the rates that every seed finished
    wrong    why it is untuned, by those rates; empty when it is tuned
    facts    what its runs share: parameters, tokens, FLOPs and memory, and the speeds of the fastest
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

    def row(self) -> dict[str, Any]:
        """A line of the table of arms."""
        told = {"arm": self.name, "loss": self.mean, "seeds": len(self.at_best), "best lr": self.best_lr}
        return {**told, "tuned": not self.wrong, "why not": self.wrong, **of_one_row(self.facts)}


def read(runs: Sequence[Run], tokens: float | None = None) -> dict[str, Arm]:
    """The arms that the runs belong to, at about `tokens` training tokens (None: the most that each arm has)."""
    rows = points(runs)
    arms = {}
    for name in dict.fromkeys(row["arm"] for row in rows):
        part = [row for row in rows if row["arm"] == name]
        lengths = [row["tokens"] for row in part if row["loss"] is not None]
        wanted = max(lengths, default=0) if tokens is None else tokens
        near = [row for row in part if row["loss"] is None or abs(row["tokens"] / wanted - 1) < 0.02]
        if any(row["loss"] is not None for row in near):
            arms[name] = one(name, near)
    if not arms:
        at = "" if tokens is None else f" at {tokens:,.0f} tokens"
        raise ValueError(f"no finished run of any arm{at}: this study reads cells that its own design made")
    return arms


def points(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each leaf of each run that has an arm; of a run that diverged one without a loss."""
    rows = []
    for run in runs:
        config = run.config
        arm = (config.get("study") or {}).get("arm")
        if arm is None or run.status not in ("finished", "diverged"):
            continue
        leaves = run.leaves if run.status == "finished" else []
        for row, stage in zip(run.points(), leaves or [{}], strict=False):
            lr = row["lr"] if row["lr"] is not None else config["optimizer"]["lr"]
            loss = row["loss"] if run.status == "finished" else None
            more = {"memory": memory_bytes(config["model"], stage), "speed": stage.get("tokens_per_s")}
            core = (stage.get("params") or {}).get("embedding")
            more["core"] = None if core is None else row["active"] - core
            rows.append({**row, **more, "arm": arm, "lr": lr, "loss": loss, "seed": config["seed"], "source": run})
    if not rows:
        raise ValueError("no run here belongs to an arm: this study reads cells that its own design made")
    return rows


def memory_bytes(model: Mapping[str, Any], stage: Mapping[str, Any]) -> float | None:
    """Bytes of the weights and of the keys and values of one full context, in fp32: inference at batch 1."""
    if not stage.get("params"):
        return None
    width = width_of(model)
    share = 1.0
    if model.get("num_heads") and model.get("num_kv_heads"):
        share = model["num_kv_heads"] / model["num_heads"]
    return 4.0 * (stage["params"]["total"] + 2 * model["depth"] * model["context"] * width * share)


def width_of(model: Mapping[str, Any]) -> int:
    """The width that a model's config means: its own, or aspect x depth."""
    return model.get("width") or model["aspect"] * model["depth"]


def one(name: str, rows: Sequence[Mapping[str, Any]]) -> Arm:
    losses: dict[float, dict[int, float]] = {}
    for row in rows:
        losses.setdefault(row["lr"], {})[row["seed"]] = math.inf if row["loss"] is None else row["loss"]
    most = max(len(by_seed) for by_seed in losses.values())
    means = {lr: sum(each.values()) / len(each) for lr, each in losses.items() if len(each) == most}
    best = min(means, key=lambda lr: means[lr])
    ended = [row for row in rows if row["loss"] is not None]
    facts = {}
    for key in ("active", "core", "params", "tokens", "flops", "memory", "speed"):
        known = [row[key] for row in ended if row[key] is not None]
        if known:
            facts[key] = float(statistics.median(known))
    if "speed" in facts:
        # Other work on the machine only slows a run, so the fastest one tells what the arm takes.
        facts["speed"] = max(float(row["speed"]) for row in ended if row["speed"] is not None)
        facts["train_s"] = facts["tokens"] / facts["speed"]
    facts |= best_latency(ended)
    return Arm(name, losses, best, untuned(sorted(means), best, most), facts)


def untuned(lrs: Sequence[float], best: float, seeds: int) -> str:
    if len(lrs) < LRS:
        return f"{len(lrs)} learning rates, and {LRS} are needed"
    if best in (lrs[0], lrs[-1]):
        return f"its best learning rate {best:g} is the {'least' if best == lrs[0] else 'largest'} that was tried"
    return "" if seeds >= SEEDS else f"{seeds} seeds, and {SEEDS} are needed"


def all_tuned(*arms: Arm) -> bool:
    return not any(arm.wrong for arm in arms)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float], level: float = LEVEL) -> dict[str, Any]:
    """Mean of ours - theirs over the seeds of both, with Student's interval; none of fewer than two seeds."""
    seeds = sorted(set(ours) & set(theirs))
    gaps = [ours[seed] - theirs[seed] for seed in seeds]
    low, high = interval(gaps, level)
    value = sum(gaps) / len(gaps) if gaps else None
    return {"value": value, "lo": low, "hi": high, "seeds": len(gaps), "better on": sum(gap < 0 for gap in gaps)}


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float | None, float | None]:
    """Student's interval of a mean."""
    from kleiber.studies.compare.intervals import reach

    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None, None
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = reach(n - 1, level) * spread
    return mean - half, mean + half


def told(gap: Mapping[str, Any], unit: str = "nats") -> str:
    """`-.140 nats [-.150, -.130]`, or with the words for why it has no interval."""
    if gap["value"] is None:
        return "no seed in common"
    if gap["lo"] is None:
        return f"{gap['value']:+.4f} {unit} (no interval: {gap['seeds']} seed)"
    return f"{gap['value']:+.4f} {unit}, {LEVEL:.0%} [{gap['lo']:+.4f}, {gap['hi']:+.4f}]"


def complaints(arms: Mapping[str, Arm]) -> list[dict[str, str]]:
    """A verdict for each arm that is not tuned."""
    text = "arm {} is left out of the headline: {}"
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


def best_latency(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each latency at its best over the rows of an arm: the highest speeds, the least times and bytes; those it has."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(PREFIX) and value is not None and value == value:
                found.setdefault(name, []).append(float(value))
    return {name: (max if "_per_s" in name else min)(values) for name, values in found.items()}


def of_one_row(facts: Mapping[str, float]) -> dict[str, float]:
    """The facts of an arm with its latency by name, of one row at a time; the other batch sizes are `price`'s."""
    rest = {name: value for name, value in facts.items() if not name.startswith(PREFIX)}
    return rest | {column: facts[name] for column, name in AT_ONE.items() if name in facts}


def price(arms: Mapping[str, Arm], mixture: str) -> list[dict[str, Any]]:
    """A row a quantity: that of the mixture, and what it is over that of each other arm, where both are known."""
    if mixture not in arms:
        return []
    ours, others = arms[mixture], [arm for name, arm in arms.items() if name != mixture]
    rows = []
    for what, name in quantities(ours.facts).items():
        ratios = {f"{mixture} / {arm.name}": ours.facts[name] / arm.facts[name] for arm in others if name in arm.facts}
        if ratios:
            rows.append({"what": what, mixture: ours.facts[name], **ratios})
    return rows


def quantities(facts: Mapping[str, float]) -> dict[str, str]:
    """Names of the facts that are a price, by what a reader calls them."""
    batches = sorted({int(name.rpartition("/")[2]) for name in facts if name.startswith(PREFIX)})
    named = {"training tokens/s": "speed", "bytes of weights and one full context": "memory"}
    for what, key in BY_BATCH.items():
        named |= {f"{what}, {rows} at once": f"{PREFIX}{key}/{rows}" for rows in batches}
    return {what: name for what, name in named.items() if name in facts}


def unmeasured(arms: Mapping[str, Arm]) -> list[dict[str, str]]:
    """A verdict that names the arms whose runs have no latency."""
    names = [arm.name for arm in arms.values() if not any(fact.startswith(PREFIX) for fact in arm.facts)]
    if not names:
        return []
    text = f"latency was not measured in the runs of {', '.join(names)}; kleiber eval RUN --evals latency does it"
    return [{"code": "latency", "level": "note", "text": text}]


Figures = dict[str, Callable[[], Any]]


def differences_chart(gaps: Sequence[Mapping[str, Any]], title: str) -> Figures:
    return {"differences": lambda: _plots().differences(gaps, title)} if gaps else {}


def each_arm(arms: Mapping[str, Arm]) -> Figures:
    """The arms side by side, and what each learning rate gave."""
    return {"arms": lambda: _plots().side_by_side(arms), "tuning": lambda: _plots().tuning(arms)}


def against_loss(name: str, rows: Sequence[Mapping[str, Any]], x: str, title: str) -> Figures:
    """Loss of the arms against another of their numbers."""
    return {name: lambda: _plots().scatter(rows, x, "loss", title)} if rows else {}


def _plots() -> Any:
    from kleiber.studies.compare import figures

    return figures
