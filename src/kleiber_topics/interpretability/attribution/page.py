"""HTML of texts whose predictions a reader can explain: a click chooses the token, a menu the method.

The values stand in the page as JSON, and a short script of its own colors the tokens. It writes texts as text, never as
HTML, so the page is safe whatever the texts are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from kleiber.types import Json

LABELS = {
    "gradient_x_input": "gradient x input",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
    "rollout": "attention rollout",
}
STYLE = """<style>
.explained { margin: 1em 0 2em } .explained .tokens { font: 14px/2 ui-monospace, monospace; white-space: pre-wrap;
overflow-wrap: anywhere; max-width: 76em } .explained button { font: inherit; color: inherit; background: none;
border: 0; border-radius: 3px; padding: 2px 0; margin: 0; white-space: pre-wrap; cursor: pointer }
.explained button:disabled { cursor: default } .explained button.target { outline: 2px solid #222 }
.explained button:focus-visible { outline: 2px dashed #222 } .explained .value { min-height: 1.6em; color: #555 }
.scale { white-space: nowrap } .scale span { padding: 2px 8px } </style>"""
SCRIPT = """<script>
for (const root of document.querySelectorAll(".explained")) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const [method, target] = root.querySelectorAll("select"), line = root.querySelector(".value");
  const shown = text => text.replaceAll("\\n", "⏎\\n").replaceAll("\\t", "⇥\\t");
  const buttons = data.tokens.map((token, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = shown(token);
    root.querySelector(".tokens").append(button);
    const number = data.targets.findIndex(each => each.at === place);
    button.disabled = number < 0;
    button.addEventListener("click", () => { target.value = number; draw(); });
    return button;
  });
  const draw = () => {
    const chosen = data.targets[target.value], values = data.methods[method.value][target.value];
    const largest = Math.max(...values.map(Math.abs), 1e-12);
    buttons.forEach((button, place) => {
      const value = place < values.length && place !== chosen.at ? values[place] : 0;
      const share = Math.abs(value) / largest;
      button.style.background = `rgba(${value < 0 ? "0, 114, 178" : "230, 159, 0"}, ${0.85 * share})`;
      button.title = place < values.length ? String(values[place]) : "";
      button.classList.toggle("target", place === chosen.at);
    });
    const best = values.map((value, place) => [value, place]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const names = best.map(([value, place]) => `“${shown(data.tokens[place])}” (${value})`).join(", ");
    line.textContent = `log p = ${chosen.log_prob} nats; largest attributions: ${names}`;
  };
  method.addEventListener("change", draw);
  target.addEventListener("change", draw);
  draw();
}
</script>"""


def explorer(texts: Mapping[str, Sequence[Json]]) -> str:
    """HTML of the texts of each data set, as `Attribution.shown_texts` returns them; "" without one."""
    parts = [explained_text(data, number, text) for data, of in texts.items() for number, text in enumerate(of, 1)]
    if not parts:
        return ""
    scale = "".join(
        f'<span style="background:rgba({color}, {opacity})">{label}</span>'
        for color, opacity, label in (
            ("0, 114, 178", 0.85, "makes it less likely"),
            ("0, 114, 178", 0.3, ""),
            ("230, 159, 0", 0.3, ""),
            ("230, 159, 0", 0.85, "makes it more likely"),
        )
    )
    return (
        f"{STYLE}<p>Choose a token to explain the prediction of it, and a method. Colors are relative to the largest "
        f'attribution of the prediction. <span class="scale">{scale}</span></p>{"".join(parts)}{SCRIPT}'
    )


def explained_text(data: str, number: int, text: Json) -> str:
    """The controls and the values of one text."""
    methods = "".join(
        f'<option value="{escape(name)}"{" selected" * (name == "occlusion")}>{escape(LABELS[name])}</option>'
        for name in text["methods"]
    )
    last = len(text["targets"]) - 1
    targets = "".join(
        f'<option value="{i}"{" selected" * (i == last)}>{escape(target_name(each["at"], each["name"]))}</option>'
        for i, each in enumerate(text["targets"])
    )
    return (
        f'<div class="explained"><h3>{escape(data)}, text {number}</h3>'
        f"<label>method <select>{methods}</select></label> <label>prediction <select>{targets}</select></label>"
        f'<p class="value"></p><div class="tokens"></div>{json_element(text)}</div>'
    )


def target_name(at: int | None, name: str) -> str:
    """A class by its name, or a token by its number and text."""
    return f"class {name}" if at is None else f"{at}: {name!r}"


def json_element(values: Json) -> str:
    """A script element with data, which no text in it can end."""
    content = json.dumps(values, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json">{content}</script>'
