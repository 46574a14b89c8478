"""Figures of what retrieval changes against the size of the datastore, and HTML of retrieved text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import altair as alt
import numpy as np
import pandas as pd

from kleiber.charts import line_chart
from kleiber.types import Json

LABELS = {"knn": "nearest neighbors", "bm25": "BM25, in front", "dense": "hidden states, in front"}
CHANGES = {
    "loss": ("loss", "loss less that without retrieval (nats per token)"),
    "exact_match": ("exact match", "exact match less that without retrieval"),
}
WITHOUT, NOTHING = "without retrieval", {"mean": 0.0, "lo": 0.0, "hi": 0.0, "half": np.nan}
BOX = "white-space:pre-wrap;border-left:3px solid #ccc;padding-left:.8em;margin:.4em 0"


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """A figure for each data set, under a name that can be one of a file."""
    sizes = results["details"]["sizes"]
    charts = {name: changes(name, scores, sizes) for name, scores in results["scores"].items()}
    return {f"retrieval_{name.replace('/', '_')}": chart for name, chart in charts.items()}


def changes(name: str, scores: Mapping[str, Json], sizes: Sequence[Json]) -> alt.TopLevelMixin:
    """The change of loss or exact match by each method vs the tokens of the datastore, with 90 % intervals."""
    metric = "exact_match" if "exact_match" in scores else "loss"
    rows = [{"tokens": size["tokens"], "method": WITHOUT, "seeds": None, **NOTHING} for size in sizes]
    for method, label in LABELS.items():
        for size in sizes:
            place = f"{method}/tokens{size['asked']}" if len(sizes) > 1 else method
            score = scores.get(f"{place}/difference")
            if score is not None:
                half = np.nan if score["lo"] is None else (score["hi"] - score["lo"]) / 2
                interval = {"mean": score["value"], "lo": score["lo"], "hi": score["hi"], "half": half}
                rows.append({"tokens": size["tokens"], "method": label, "seeds": score["n"], **interval})
    title, axis = CHANGES[metric]
    return line_chart(
        pd.DataFrame(rows), "tokens", "tokens in the datastore", "method", f"Change of {title} by retrieval: {name}",
        value=axis, subtitle=f"without retrieval: {scores[metric]['value']:.3f}; intervals over samples",
    )  # fmt: skip


def page(details: Json) -> str:
    """Text that was retrieved, in front of the text that it was retrieved for; every text is escaped."""
    parts = []
    for name, examples in details["examples"].items():
        for example in examples:
            change = f"{example['nats']:.2f} nats without and {example['nats_with']:.2f} with the retrieved text"
            parts.append(
                f"<p><b>{escape(name)}, {escape(LABELS[example['method']])}</b>: {change}.</p>"
                f'<pre style="{BOX}"><span style="color:#0072B2">{escape(example["retrieved"])}</span></pre>'
                f'<pre style="{BOX}"><span style="color:#767676">{escape(example["before"])}</span>'
                f"{escape(example['target'])}</pre>"
            )
    if not parts:
        return ""
    intro = "<p>Blue: retrieved text, which stands in front; gray: the text so far; black: the scored tokens.</p>"
    return intro + "".join(parts)
