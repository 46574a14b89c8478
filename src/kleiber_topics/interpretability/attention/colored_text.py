"""Text colored by the logit lens, as HTML that is readable on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kleiber.types import Json

# Blue with an opacity: the text keeps its own color, whose contrast with the mixture stays above 4.5 on both pages.
COLOR = "0, 114, 178"
STRONGEST = 0.55
STYLE = (
    "<style>.lens { font: 13px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; "
    "max-width: 76em } .lens span { padding: 2px 0; border-radius: 2px } "
    ".lens-layer { font-weight: 600; margin-top: .8em }</style>"
)
MARKS = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}


def colored_pages(lens: Json) -> str:
    """HTML of the text of each data set; "" without one.

    lens  by data set: `tokens`, and `probability` and `best`, lists by layer with an entry for each token
    """
    parts = [colored_text(data, **values) for data, values in lens.items() if values["tokens"]]
    return STYLE + "".join(parts) if parts else ""


def colored_text(
    data: str,
    tokens: Sequence[str],
    probability: Sequence[Sequence[float]],
    best: Sequence[Sequence[str]],
    loss: Sequence[float] = (),
) -> str:
    """The text colored by the layer at which its token became the best one, and, folded, by probability after each."""
    depth = len(probability) - 1
    decided = [deciding_layer(token, [layer[i] for layer in best]) for i, token in enumerate(tokens)]
    by_layer = [
        span(
            token,
            0.0 if layer is None else 1 - layer / (depth + 1),
            "not predicted" if layer is None else f"predicted after {layer_name(layer)}",
        )
        for token, layer in zip(tokens, decided, strict=True)
    ]
    legend = " ".join(
        [
            *(span(layer_name(layer), 1 - layer / (depth + 1), "") for layer in range(depth + 1)),
            span("never", 0.0, ""),
        ]
    )
    html = f"<h2>Logit lens: {escape(data)}</h2><p>First layer from which on the most probable next token is the one "
    html += f'that follows: <span class="lens">{legend}</span></p><div class="lens">{"".join(by_layer)}</div>'
    html += "<details><summary>Probability of each token after each layer</summary>"
    scale = " ".join(span(f"{share:.0%}", share, "") for share in (0.0, 0.25, 0.5, 0.75, 1.0))
    html += f'<p>Probability: <span class="lens">{scale}</span></p>'
    for layer, shares in enumerate(probability):
        name = layer_name(layer) + (f", loss {loss[layer]:.3f} nats per token" if loss else "")
        words = [
            span(token, share, f"{share:.1%}; most probable: {guess}")
            for token, share, guess in zip(tokens, shares, best[layer], strict=True)
        ]
        html += f'<div class="lens-layer">After {escape(name)}</div><div class="lens">{"".join(words)}</div>'
    return html + "</details>"


def deciding_layer(token: str, best: Sequence[str]) -> int | None:
    """The first layer from which on `best` is the token; None where it is not after the last layer."""
    layer = len(best)
    while layer > 0 and best[layer - 1] == token:
        layer -= 1
    return None if layer == len(best) else layer


def layer_name(layer: int) -> str:
    """The name of a place in the model: the embedding, or the number of blocks before it."""
    return "the embedding" if layer == 0 else f"block {layer}"


def span(text: str, share: float, tip: str) -> str:
    """A piece of text with a background whose opacity is proportional to `share`, from 0 to 1."""
    shown = escape("".join(MARKS.get(character, character) for character in text))
    title = f' title="{escape(tip)}"' if tip else ""
    return f'<span style="background: rgba({COLOR}, {STRONGEST * share:.2f})"{title}>{shown}</span>'
