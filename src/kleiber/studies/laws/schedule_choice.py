"""Chooses the decay of a run by a law of schedules, and compares it with the usual WSD and cosine schedules.

The interval of the decay is that of the shares that are best under parameters drawn from the posterior distribution.
Differences are of the chosen share minus another schedule, in nats: `lo` and `hi` hold if the law does, `run_lo` and
`run_hi` are for two new runs and contain the noise of a curve and the error of the law for another schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kleiber.studies.laws.law import Array
from kleiber.studies.laws.prediction import MAX_DECADES, fitted_values
from kleiber.studies.laws.schedule_prediction import (
    BAND_DRAWS,
    FREE,
    predict_schedule,
    rates_of,
    run_sd,
    schedule_line,
    schedule_node,
    schedule_words,
)
from kleiber.studies.laws.schedules import ScheduleLaw, rate_path
from kleiber.studies.laws.uncertainty import percent, student_quantile
from kleiber.types import Json, Row
from kleiber.types.score import format_interval

BEST = "best"  # the name of a schedule: WSD with the decay that the law chooses
DECAYS = np.arange(1, 51) / 50  # shares of the steps that are compared
RIVALS = ("wsd", "cosine")  # as they come: a decay of 0.2, and a cosine to a tenth of the peak


def best_decay(
    record: Row, form: ScheduleLaw, steps: int | None, words: Sequence[str], max_decades: float = MAX_DECADES
) -> Json:
    """Returns what `predict_schedule` does for WSD with the best decay, and how good it is.

    steps  length of the run
    words  lr=PEAK, and warmup_steps and final of the schedule

    decay    value, lo and hi: share of the steps over which the rate decays
    against  the difference from each of RIVALS in nats: value, lo, hi, run_lo and run_hi
    decays   the predicted loss for each share: decay and value

    Raises ValueError for a missing length or rate, for a decay in `words`, and for steps that are too far.
    """
    values, peak = schedule_words(BEST, steps, words, record)
    if "decay" in values:
        raise ValueError(f"--schedule {BEST} chooses the decay: remove decay={values['decay']}, or predict wsd with it")
    length, draws = steps or 0, np.array(record["draws"])[:BAND_DRAWS]
    wsd = schedule_node(["schedule=wsd", *(f"schedule.{name}={value}" for name, value in values.items())])
    warmup = f"schedule.warmup_steps={wsd['warmup_steps']}"
    nodes = {"cosine": schedule_node(["schedule=cosine", warmup]), "wsd": wsd}
    every = np.concatenate([fitted_values(record), draws]) if len(draws) else fitted_values(record)

    def last_losses(node: Json) -> Array:
        at, rates = rates_of(node, length, peak)
        return form.losses(rate_path(at, rates, at[-1:]), every)[:, 0]

    losses = np.array([last_losses({**wsd, "decay": float(decay)}) for decay in DECAYS])  # (decays, draws)
    places = losses.argmin(axis=0)
    chosen = float(DECAYS[places[0]])
    answer = predict_schedule(record, form, *rates_of({**wsd, "decay": chosen}, length, peak), max_decades)
    ends = _ends(DECAYS[places[1:]], record["level"])
    gains = {name: losses[places[0]] - last_losses(nodes[name]) for name in RIVALS}
    shown = [{"decay": float(decay), "value": float(value)} for decay, value in zip(DECAYS, losses[:, 0], strict=True)]
    against = {name: _difference(record, gain, answer["value"]) for name, gain in gains.items()}
    return {"decay": {"value": chosen, **ends}, "against": against, "decays": shown, **answer}


def _ends(draws: Array, level: float) -> dict[str, float | None]:
    """Returns the ends of the interval of draws; None without draws."""
    if not len(draws):
        return {"lo": None, "hi": None}
    lo, hi = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return {"lo": float(lo), "hi": float(hi)}


def _difference(record: Row, gain: Array, loss: float) -> Json:
    """Returns a difference of losses, (1 + draws,) of which the first is that of the fit, with its intervals."""
    value, ends = float(gain[0]), _ends(gain[1:], record["level"])
    out: Json = {"value": value, **ends, "run_lo": None, "run_hi": None}
    if ends["lo"] is None or ends["hi"] is None:
        return out
    out["lo"], out["hi"] = min(ends["lo"], value), max(ends["hi"], value)
    runs = 2**0.5 * loss * float(run_sd(record["scatter"], 0.0, np.zeros(1))[0])
    extra = student_quantile(FREE, record["level"]) * runs
    below, above = np.hypot(value - out["lo"], extra), np.hypot(out["hi"] - value, extra)
    return out | {"run_lo": value - float(below), "run_hi": value + float(above)}


def choice_lines(answer: Row, level: float) -> list[str]:
    """Formats what `best_decay` returns."""
    decay = answer["decay"]
    ends = "" if decay["lo"] is None else f" {format_interval(decay['lo'], decay['hi'], '.2f')}"
    lines = [f"best decay {decay['value']:.2f}{ends} of the steps", schedule_line(answer, level)]
    for name, row in answer["against"].items():
        text = f"relative to {name}: {row['value']:+.4f} nats"
        if row["lo"] is not None:
            law, runs = (format_interval(row[f"{kind}lo"], row[f"{kind}hi"], "+.4f") for kind in ("", "run_"))
            text += f", if the law holds {law}, {percent(level)} interval of two new runs {runs}"
        lines.append(text)
    return lines
