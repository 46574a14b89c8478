"""What the arms of a comparison cost: speed, memory, energy, price and latency, of a run and of an arm.

Training speed and latency are the best of an arm's runs, since other work on the machine only slows a run; a best, and
a ratio of two, has no interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from kleiber.config.cost import SECONDS_PER_HOUR
from kleiber.config.model_size import cached_values
from kleiber.studies.compare.measures import Measures
from kleiber.types import Config, Json, Row

LATENCY = "eval/latency/random/"  # prefix of the metrics of evals=[latency]; <quantity>/<rows at once> follow
AT_ONE = {  # columns of the table of arms
    "prefill tokens/s": f"{LATENCY}prefill_tokens_per_s/1",
    "decode tokens/s": f"{LATENCY}decode_tokens_per_s/1",
    "decode p50 (ms)": f"{LATENCY}decode_p50_ms/1",
    "decode p95 (ms)": f"{LATENCY}decode_p95_ms/1",
}
# Facts that are equal in the runs of an arm.
MEDIANS = ("active", "core", "params", "tokens", "flops", "memory", "watts", "hourly")
TOTALS = {"watt_hours": "watts", "price": "hourly"}  # facts of a training run at the speed of the arm
BY_BATCH = {
    "prefill tokens/s": "prefill_tokens_per_s",
    "decode tokens/s": "decode_tokens_per_s",
    "bytes while decoding": "memory_bytes",
}
UNEVEN = 1.2  # fastest run over median run of an arm, above which other work may be what made the difference
LATENCY_METHODS = (
    " Latency (evals=[latency]) was taken of every branch after its last step, in the process that trained it: "
    "greedy decoding of random tokens with a key-value cache, by the weights that were trained, not compiled; prompts "
    "of half the context (at most 128 tokens), as many new tokens (at most 64), 1, 8 and 64 rows at once. Prefill is "
    "the median of three rounds after one that warms up, decode the tokens over the time of all its steps, p50 and p95 "
    "are of single steps, bytes those of weights and cache. Of each speed and time an arm has the best of its runs, "
    "since other work on the machine only slows a run; such a best, and a ratio of two, has no interval."
)


def costs_of_leaf(model: Config, stage: Json) -> Json:
    """Columns of a leaf; None where unknown.

    memory  bytes, see `memory_bytes`
    speed   training tokens per second
    core    active parameters outside the embeddings
    watts   power of all devices
    hourly  price of an hour of all devices
    """
    params = stage.get("params") or {}
    core = None if params.get("embedding") is None else params["active"] - params["embedding"]
    cost, seconds = stage.get("cost") or {}, stage.get("seconds")
    watts, price = (cost[key] / seconds if cost.get(key) and seconds else None for key in ("joules", "price"))
    return {
        "memory": memory_bytes(model, stage),
        "speed": stage.get("tokens_per_s"),
        "core": core,
        "watts": watts,
        "hourly": None if price is None else SECONDS_PER_HOUR * price,
    }


def memory_bytes(model: Config, stage: Json) -> float | None:
    """Bytes for inference at batch size 1 in fp32: the weights, and what decoding keeps of one full context.

    None for a model whose config does not tell its depth and width.
    """
    if not stage.get("params") or not model.get("depth"):
        return None
    cached = cached_values(model)
    return None if cached is None else 4.0 * (stage["params"]["total"] + cached)


def facts_of_arm(rows: Sequence[Row], scores: Measures) -> dict[str, float]:
    """Parameters, tokens, FLOPs and memory (medians of the rows of an arm), and the speeds of the fastest run."""
    latency = dict.fromkeys(name for row in rows for name in row if name.startswith(LATENCY))
    facts: dict[str, float] = {}
    for name in (*MEDIANS, "speed", *latency):
        values = measured_values(rows, name)
        best = max if name == "speed" or scores[name].better == "higher" else min
        if values:
            facts[name] = statistics.median(values) if name in MEDIANS else best(values)
    if "speed" in facts:
        facts["train_s"] = facts["tokens"] / facts["speed"]
        hours = facts["train_s"] / SECONDS_PER_HOUR
        facts |= {total: facts[rate] * hours for total, rate in TOTALS.items() if rate in facts}
    return facts


def measured_values(rows: Sequence[Row], name: str) -> list[float]:
    """The values of a column, without None and nan."""
    values = [row.get(name) for row in rows]
    return [float(value) for value in values if value is not None and value == value]


def with_readable_latency(facts: Mapping[str, float]) -> dict[str, float]:
    """The facts of an arm with the latency at batch size 1 under readable names, and without that of others."""
    rest = {name: value for name, value in facts.items() if not name.startswith(LATENCY)}
    return rest | {column: facts[name] for column, name in AT_ONE.items() if name in facts}


def cost_table(facts: Mapping[str, Mapping[str, float]], pairs: Sequence[tuple[str, str]]) -> list[Json]:
    """A row for each cost: its value for the arms, and its ratio for pairs of arms.

    facts  of each arm, by its name
    """
    batches = {int(name.rpartition("/")[2]) for each in facts.values() for name in each if name.startswith(LATENCY)}
    costs = {
        "training tokens/s": "speed",
        "watt-hours of training": "watt_hours",
        "price of training": "price",
        "bytes of weights and one full context": "memory",
    }
    for cost, name in BY_BATCH.items():
        costs |= {f"{cost}, {rows} at once": f"{LATENCY}{name}/{rows}" for rows in sorted(batches)}
    table = []
    for cost, name in costs.items():
        values = {arm: each[name] for arm, each in facts.items() if name in each}
        ratios = {f"{a} / {b}": values[a] / values[b] for a, b in pairs if a in values and b in values}
        if ratios:
            table.append({"cost": cost, **values, **ratios})
    return table


def arms_without_latency(facts: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    """A verdict that names the arms whose runs have no latency; none where no arm or every arm has it."""
    names = [arm for arm, each in facts.items() if not any(name.startswith(LATENCY) for name in each)]
    if len(names) in (0, len(facts)):
        return []
    text = f"latency was not measured in the runs of {', '.join(names)}; kleiber eval RUN --evals latency does it"
    return [{"code": "latency", "text": text}]


def uneven_speeds(speeds: Mapping[str, Sequence[float]]) -> list[dict[str, str]]:
    """A caveat that names the arms whose fastest run is far from the median run, perhaps because of other work.

    speeds  training tokens per second of the runs of each arm
    """
    factors = {arm: max(each) / statistics.median(each) for arm, each in speeds.items() if each}
    uneven = {arm: factor for arm, factor in factors.items() if factor > UNEVEN}
    if not uneven:
        return []
    named = ", ".join(f"{arm} {factor:.2g}" for arm, factor in uneven.items())
    text = (
        "speed, energy and price are those of the fastest run of an arm. It was faster than the median run by a factor "
        f"({named}), so other work on the machine may have changed their ratios"
    )
    return [{"code": "speed", "text": text}]
