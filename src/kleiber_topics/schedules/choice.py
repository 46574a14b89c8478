"""Chooses the decay of a run by a law of schedules, and compares it with the usual WSD and cosine schedules.

The interval of the decay is that of the shares that are best under parameters drawn from the posterior distribution.
Differences are of the chosen share minus another schedule, in nats: `lo` and `hi` hold if the law does, `run_lo` and
`run_hi` are for two new runs and contain the noise of a curve and the error of the law for another schedule.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kleiber.studies import Array, interval_ends, percent, student_quantile
from kleiber.types import Json, Row, format_interval
from kleiber_topics.schedules.forms import FORMS, rate_path
from kleiber_topics.schedules.prediction import (
    BAND_DRAWS,
    FREE,
    length_and_peak,
    predict_schedule,
    rates_of,
    run_sd,
    schedule_line,
    schedule_node,
    schedule_rates,
    values_of,
)

BEST = "best"  # the name of a schedule: WSD with the decay that the law chooses
DECAYS = np.arange(1, 51) / 50  # shares of the steps that are compared
RIVALS = ("wsd", "cosine")  # as they come: a decay of 0.2, and a cosine to a tenth of the peak


def predict_point(record: Row, at: Row) -> Json:
    """Predicts a run: of a schedule of kleiber, of a table of rates, or with the best decay.

    at  schedule (a choice, a file, or best), steps and lr, the peak rate, and arguments of the schedule

    Raises ValueError for a missing schedule, length or peak rate, and for unknown arguments.
    """
    values = {name: float(value) for name, value in at.items() if name != "schedule"}
    if "schedule" not in at:
        raise ValueError("the law schedule predicts a run: add --schedule NAME --steps STEPS, or --on TABLE of rates")
    if at["schedule"] == BEST:
        return best_decay(record, values)
    return predict_schedule(record, *schedule_rates(record, at["schedule"], values))


def best_decay(record: Row, values: Mapping[str, float]) -> Json:
    """Returns what `predict_schedule` does for WSD with the best decay, and how good it is.

    values  steps and lr, the peak rate, and warmup_steps and final of the schedule

    decay    value, lo and hi: share of the steps over which the rate decays
    against  the difference from each of RIVALS in nats: value, lo, hi, run_lo and run_hi
    decays   the predicted loss for each share: decay and value

    Raises ValueError for a missing length or rate, and for a decay in `values`.
    """
    arguments, length, peak = length_and_peak(record, BEST, values)
    if "decay" in values:
        raise ValueError(f"--schedule {BEST} chooses the decay: remove decay={values['decay']:g}, or predict wsd")
    form, draws = FORMS[record["form"]], np.array(record["draws"])[:BAND_DRAWS]
    wsd = schedule_node("wsd", arguments)
    nodes = {"cosine": schedule_node("cosine", {"warmup_steps": float(wsd["warmup_steps"])}), "wsd": wsd}
    every = np.concatenate([values_of(record), draws]) if len(draws) else values_of(record)

    def last_losses(node: Json) -> Array:
        at, rates = rates_of(node, length, peak)
        return form.losses(rate_path(at, rates, at[-1:]), every)[:, 0]

    losses = np.array([last_losses({**wsd, "decay": float(decay)}) for decay in DECAYS])  # (decays, draws)
    places = losses.argmin(axis=0)
    chosen = float(DECAYS[places[0]])
    answer = predict_schedule(record, *rates_of({**wsd, "decay": chosen}, length, peak))
    ends = interval_ends(DECAYS[places[1:]], record["level"])
    gains = {name: losses[places[0]] - last_losses(nodes[name]) for name in RIVALS}
    shown = [{"decay": float(decay), "value": float(value)} for decay, value in zip(DECAYS, losses[:, 0], strict=True)]
    against = {name: _difference(record, gain, answer["value"]) for name, gain in gains.items()}
    return {"decay": {"value": chosen, **ends}, "against": against, "decays": shown, **answer}


def _difference(record: Row, gain: Array, loss: float) -> Json:
    """Returns a difference of losses, (1 + draws,) of which the first is that of the fit, with its intervals."""
    value, ends = float(gain[0]), interval_ends(gain[1:], record["level"])
    out: Json = {"value": value, **ends, "run_lo": None, "run_hi": None}
    if ends["lo"] is None or ends["hi"] is None:
        return out
    out["lo"], out["hi"] = min(ends["lo"], value), max(ends["hi"], value)
    runs = 2**0.5 * loss * float(run_sd(record["scatter"], np.zeros(1))[0])
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
