"""The figure of the metrics, and HTML of samples in which repeated n-grams are marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import altair as alt

from kleiber.charts import estimates
from kleiber.types import Json
from kleiber_topics.collapse.texts import KINDS, MARKED

LABELS = {"greedy": "greedy", "sampled": "temperature 1", "human": "human text"}
TITLES = {
    **{f"distinct_{n}": f"different {n}-grams (distinct-{n})" for n in range(1, 5)},
    "rep_2": "repeated 2-grams (rep-2)", "rep_3": "repeated 3-grams (rep-3)",
    "seq_rep_4": "repeated 4-grams (seq-rep-4)", "longest_repeat": "longest repeated span ({unit}s)",
    "loop_rate": "samples that end in a loop", "self_bleu_4": "likeness of samples (self-BLEU-4)",
    "entropy": "next-token entropy (nats)", "unigram_kl": "KL of unigrams from held-out text (nats)",
    "mauve": "closeness to held-out text (MAUVE)",
}  # fmt: skip
MARK = "background:#e69f00;color:#000"


def figures(results: Json) -> Mapping[str, alt.TopLevelMixin]:
    """A figure of small multiples for each data set, under a name that can be one of a file."""
    unit = results["details"]["unit"]
    charts = {name: measures(name, scores, unit) for name, scores in results["scores"].items()}
    return {f"degeneration_{name.replace('/', '_')}": chart for name, chart in charts.items()}


def measures(name: str, scores: Mapping[str, Mapping[str, float | None]], unit: str) -> alt.TopLevelMixin:
    """Each metric of greedy decoding, sampling and human text, with intervals and a line at the human value."""
    labels = [LABELS[kind] for kind in reversed(KINDS)]  # human text is black
    rows = [
        {
            **scores[f"{kind}/{metric}"], "series": LABELS[kind], "panel": title.format(unit=unit),
            "reference": scores.get(f"human/{metric}", {}).get("value"),
        }
        for metric, title in TITLES.items()
        for kind in KINDS
        if f"{kind}/{metric}" in scores
    ]  # fmt: skip
    note = f"n-grams of {'words' if unit == 'word' else 'tokens'}; bars: 90% intervals over samples; dashed: human text"
    return estimates(
        rows, labels, "", f"Repetition and diversity of generated text: {name}", columns=3, width=210, format=".4g",
        subtitle=f"{note} of the same number and length",
    )  # fmt: skip


def samples_html(details: Json) -> str:
    """Samples of each data set and kind. Prompts are gray; 4-grams that occurred before in the sample are marked."""
    parts = [f"<p>Prompts are gray. {MARKED}-grams that occurred before in the sample are marked.</p>"]
    for name, kinds in details["samples"].items():
        for kind, samples in kinds.items():
            if samples:
                parts.append(f"<h3>{escape(name)}: {escape(LABELS[kind])}</h3>")
                parts += [sample_html(sample["prompt"], sample["pieces"]) for sample in samples]
    return "\n".join(parts)


def sample_html(prompt: str, pieces: Sequence[Sequence[str | bool]]) -> str:
    """A sample; every text is escaped."""
    text = [
        f'<mark style="{MARK}">{escape(str(piece))}</mark>' if again else escape(str(piece)) for piece, again in pieces
    ]
    style = "white-space:pre-wrap;border-left:3px solid #ccc;padding-left:.8em"
    return f'<pre style="{style}"><span style="color:#767676">{escape(prompt)}</span>{"".join(text)}</pre>'
