"""What a stream shows: a decision for programs and for people, its status, and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import altair as alt
import pandas as pd

from kleiber.charts import Chart, Marks, estimates, kind_color, lines, render_page
from kleiber.inference import FEWEST_PLAIN, PILOT
from kleiber.records import write_text
from kleiber.types import Json, format_interval
from kleiber_topics.gate.engine import Gate, format_values

SCHEMA = "kleiber.gate/1"
PAGE = "gate.html"
COUNTED = {"keep": "kept", "discard": "discarded", "undecided": "undecided"}
NUMBERS = ("value", "lo", "hi", "n")


def decision_json(gate: Gate, row: Json) -> Json:
    """Returns a decision as --json prints it."""
    size = row.get("size")
    return {
        "schema": SCHEMA, "name": row["name"], "decision": row["decision"], **{key: row[key] for key in NUMBERS},
        "unit": "", "runs": row["runs"], "error_spent": row["error_spent"], "error_left": row["error_left"],
        "baseline": row["baseline"], "reserve": row.get("reserve") or dict.fromkeys(("value", "lo", "hi")),
        **({"size": size} if size else {}), "why": why_of(row), "next": next_step(gate, row),
    }  # fmt: skip


def why_of(row: Json) -> str:
    """Returns why a proposal was decided so; `identical` for a change that measures exactly the same."""
    return "identical" if row["why"].startswith("identical") else row["why"]


def next_step(gate: Gate, row: Json) -> str:
    """Returns what to do after a decision."""
    state = gate.state
    if state.settings.budget is not None and state.runs >= state.settings.budget:
        return "the budget of runs is spent: begin a new stream, with fresh errors, to go on"
    if row["decision"] == "keep":
        return f"the plain recipe is {row['name']} now: propose changes of it"
    return f"the plain recipe stays {state.name or 'that of init'}: propose another change"


def estimate_text(row: Json) -> str:
    """Returns the difference of a decision with its interval."""
    if row["value"] is None:
        return "no estimate"
    ends = "" if row["lo"] is None else " " + format_interval(row["lo"], row["hi"], "+.4g")
    return f"{row['value']:+.4g}{ends}"


def decision_lines(gate: Gate, row: Json) -> list[str]:
    """Returns a decision for people."""
    level = gate.state.settings.level
    interval = f"changed - plain {estimate_text(row)} ({level:.0%} interval, {row['n'] or 0} runs)"
    text = [f"{row['name']}: {row['decision']}, {row['why']}"]
    if row["baseline"] is not None:
        text.append(f"  {interval}, plain {row['baseline']:.6g}")
    if row.get("reserve"):
        text.append(f"  on the reserve {estimate_text(row['reserve'])}")
    if row.get("size"):
        size = row["size"]
        text.append(f"  at {format_values(size['at'])}: {estimate_text(size)}; the gain is {size['gain']}")
    text.append(f"  {row['runs']} runs; error spent {row['error_spent']:.3g}, left {row['error_left']:.3g}")
    return [*text, f"  {next_step(gate, row)}"]


def status_json(gate: Gate) -> Json:
    """Returns the state of a stream."""
    state = gate.state
    settings, budget = state.settings, state.stream.budget
    counts = {
        kind: sum(row["decision"] == kind for row in state.decisions) for kind in ("keep", "discard", "undecided")
    }
    return {
        "schema": SCHEMA, "plain": {"name": state.name, "recipe": state.recipe.text}, "better": settings.better,
        "level": settings.level, "error": settings.error, "horizon": settings.horizon,
        "proposals": len(state.decisions), **counts, "open": None if state.open is None else state.open.name,
        "error_spent": budget.spent, "error_left": budget.left, "runs": state.runs, "budget_runs": settings.budget,
        "refused": sum(row["kind"] == "refusal" for row in gate.rows),
        "failed_runs": sum(row["kind"] == "failure" for row in gate.rows),
        "drift": [{key: row[key] for key in ("seed", "before", "after", "drifted")} for row in state.drift],
        "log": {"head": gate.rows[-1]["hash"], "length": len(gate.rows)},
        "decisions": [decision_json(gate, row) for row in state.decisions],
    }  # fmt: skip


def status_lines(gate: Gate) -> list[str]:
    """Returns the state of a stream for people."""
    status = status_json(gate)
    limit = "" if status["budget_runs"] is None else f" of {status['budget_runs']}"
    counts = ", ".join(f"{status[kind]} {name}" for kind, name in COUNTED.items())
    text = [
        f"plain recipe: {status['plain']['recipe']}",
        f"proposals: {counts}; {status['runs']}{limit} runs",
        f"refused proposals: {status['refused']}; failed runs: {status['failed_runs']}",
        f"error ({status['error']}, {1 - status['level']:.2g} in all): spent {status['error_spent']:.3g}, left "
        f"{status['error_left']:.3g}",
    ]
    if status["open"] is not None:
        text.append(f"not decided: {status['open']}; propose it again to go on")
    decisions = gate.state.decisions
    return text + [f"  {row['decision']:9}  {row['name']}: {estimate_text(row)}; {row['why']}" for row in decisions]


def write_report(gate: Gate) -> Path:
    """Writes the page of a stream into its folder and returns its path."""
    status, state = status_json(gate), gate.state
    settings = state.settings
    side = "below" if settings.better == "lower" else "above"
    bound = "expected share of false keeps" if settings.error == "keep" else "chance of any false keep"
    rows = [
        {
            "proposal": row["name"], "decision": row["decision"], **{key: row[key] for key in NUMBERS},
            "runs": row["runs"], "seconds": row["seconds"], "error of its test": row["error"],
            "error left": row["error_left"], "why": row["why"],
        }
        for row in state.decisions
    ]  # fmt: skip
    kept = [row["proposal"] for row in rows if row["decision"] == "keep"]
    notes = [
        f"Plain recipe now: {state.recipe.text}.",
        f"The {bound} over this stream is at most {1 - settings.level:.2g}; {status['error_left']:.3g} is left. A "
        "stream in another folder has a budget of its own: errors of several streams add up.",
        f"{status['runs']} runs in all, with {PILOT} of the plain recipe at the beginning and up to {FEWEST_PLAIN} "
        f"after a change was kept; {status['refused']} proposals were refused, {status['failed_runs']} runs failed.",
    ]
    notes += [f"The plain recipe drifted at seed {row['seed']}." for row in state.drift if row["drifted"]]
    answer = f"{len(kept)} of {len(rows)} proposals were kept" + (f": {', '.join(kept)}." if kept else ".")
    page = render_page(
        gate.home.absolute().name, figures(rows, side), question="Which changes are real gains?", answer=answer,
        notes=notes, tables={"Decisions": rows}, methods=METHODS.format(level=f"{settings.level:.0%}"),
        details={"Runs": [{key: row.get(key) for key in ("role", "seed", "value", "seconds", "folder")}
                          for row in gate.rows if row["kind"] == "run"]},
    )  # fmt: skip
    path = gate.home / PAGE
    write_text(path, page)
    return path


METHODS = (
    "A proposal is first run at seeds of earlier plain runs and discarded if it shows no sign of a gain. Otherwise it "
    "is tested on pairs of plain and changed runs at fresh seeds, after each of which a group-sequential boundary "
    "(Pocock) decides. The noise is that of the plain recipe's runs and pairs before, beside which earlier recipes "
    "count as six degrees of freedom; the pairs of the test can raise it. The gain of a pair counts as at most 2.5 of "
    "its standard deviations. Each test gets a share of the error that is left (LOND for keep, alpha spending "
    "for stream). Intervals of tested proposals hold at {level} at whichever pair the test stopped."
)


def figures(rows: Sequence[Json], side: str) -> dict[str, Chart]:
    """Returns the figures of a stream: the differences with their intervals, and the course of the error budget."""
    shown = [
        {"series": row["decision"], "name": row["proposal"], **{key: row[key] for key in ("value", "lo", "hi")}}
        for row in rows
        if row["value"] is not None
    ]
    if not shown:
        return {}
    title = f"Changed - plain of each proposal; better is {side} 0"
    order = [each for each in ("keep", "discard", "undecided") if any(row["series"] == each for row in shown)]
    color = kind_color(order, "series", alt.Legend(), ["keep", "discard", "undecided"])
    charts = {"decisions": estimates(shown, order, "difference", title, zero=True, color=color)}
    spent = pd.DataFrame([{"proposal": at, "value": row["error left"]} for at, row in enumerate(rows, 1)])
    x = alt.X("proposal:Q", title="proposals", axis=alt.Axis(tickMinStep=1, format="d"))
    y = alt.Y("value:Q", title="error that is left", scale=alt.Scale(zero=True))
    course = lines([Marks(rows=spent, line=2)], x, y, "The error budget over the stream")
    return {**charts, "error budget": course}
