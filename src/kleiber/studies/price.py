"""What an arm costs beside its loss: how fast it trains and decodes, and the memory that it decodes in.

Numbers of a machine: each is the best of an arm's runs, since other work on the machine only slows a run. Such a best
has no interval, and none is made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kleiber.studies.arm_rows import Arm

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
