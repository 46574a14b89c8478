"""The figure and the page of `kleiber eval --evals autoencoder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import altair as alt

from kleiber.charts import estimates
from kleiber.types import Json

KINDS = {
    "loss": "the model as it is",
    "loss_reconstructed": "reconstructed from features",
    "loss_zero": "zeros",
}
MARKS = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
STYLE = """<style>.features input { font: inherit; padding: 2px 6px; width: 16em } .feature { margin: .8em 0 }
.feature .context { font: 12px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.feature mark { background: rgba(230, 159, 0, .7); color: inherit; padding: 2px 0; border-radius: 2px }
.feature .number { color: #555; display: inline-block; min-width: 4em }</style>"""
SCRIPT = """<script>
for (const root of document.querySelectorAll(".features")) {
  const search = root.querySelector("input"), features = [...root.querySelectorAll(".feature")];
  search.addEventListener("input", () => {
    const text = search.value.toLowerCase();
    for (const feature of features) feature.hidden = !feature.textContent.toLowerCase().includes(text);
  });
}
</script>"""


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """The loss of the model with each kind of stream, for each data set."""
    rows = [
        {**scores[kind], "panel": data, "series": label}
        for data, scores in results["scores"].items()
        for kind, label in KINDS.items()
    ]
    title = f"Loss by what replaces the residual stream at layer {results['details']['layer']}"
    axis, note = "loss (nats per target token)", "90% intervals over rows"
    return {"autoencoder": estimates(rows, list(KINDS.values()), axis, title, subtitle=note, own_scales=False)}


def features_page(details: Json) -> str:
    """HTML of the features of each data set with their top contexts, and a field to search in them; "" without any."""
    parts = [data_section(data, features) for data, features in details["features"].items() if features]
    return f"{STYLE}{''.join(parts)}{SCRIPT}" if parts else ""


def data_section(data: str, features: Sequence[Json]) -> str:
    """The features of one data set, from frequent to rare."""
    listed = "".join(feature_html(feature) for feature in features)
    return (
        f'<div class="features"><h3>{escape(data)}</h3><p>Features from frequent to rare, each with the contexts in '
        f'which it is largest. <label>search <input type="search"></label></p>{listed}</div>'
    )


def feature_html(feature: Json) -> str:
    """One feature: its number, the share of tokens at which it is active, and its contexts."""
    contexts = "".join(context_html(**context) for context in feature["contexts"])
    return (
        f'<div class="feature"><b>feature {feature["feature"]}</b>, active at {feature["density"]:.2%} of tokens'
        f"{contexts}</div>"
    )


def context_html(tokens: Sequence[str], at: int, value: float) -> str:
    """The tokens around the one at which the feature has this value."""
    parts = [escape("".join(MARKS.get(character, character) for character in token)) for token in tokens]
    parts[at] = f"<mark>{parts[at]}</mark>"
    return f'<div class="context"><span class="number">{value:.2f}</span>{"".join(parts)}</div>'
