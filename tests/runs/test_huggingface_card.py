"""The card of an exported model: what was recorded is text in its table, and nothing else."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from kleiber.records.terminal import CONTROL
from kleiber.runs.huggingface import card_cell, model_card

HOSTILE = "\x1b[31m|a|\n# title\n<script>alert(1)</script>[x](http://x)`**b**\\"


def card(text: str) -> str:
    record = {
        "metrics": {f"val/{text}/loss": 2.0},
        "objective": text,
        "data": {"name": text, "config": text},
        "lr": 0.1,
    }
    trained = SimpleNamespace(
        folder=Path("runs") / text.replace("/", ""), stage=text, step=3, record=record,
        model=SimpleNamespace(heads={text: 1}),
        summary={"config_hash": text, "commit": text, "dirty": True, "seed": text},
    )  # fmt: skip
    return model_card(trained, "LlamaForCausalLM")


def test_recorded_text_adds_nothing_to_a_card():
    plain, hostile = card("text"), card(HOSTILE)
    assert not CONTROL.search(hostile) and "<script>" not in hostile and "](http" not in hostile.replace("\\]", "")
    assert hostile.count("\n") == plain.count("\n") and hostile.count("\n# ") == 1
    cells = [[line.replace("\\|", "").count("|") for line in text.splitlines()] for text in (plain, hostile)]
    assert cells[0] == cells[1], "as many cells in each row"


@pytest.mark.parametrize(
    ("value", "cell"), [(None, "unknown"), ("", "unknown"), (0, "0"), ("val/a_b/loss", "val/a_b/loss")]
)
def test_other_values_stay_as_they_are(value, cell):
    assert card_cell(value) == cell
