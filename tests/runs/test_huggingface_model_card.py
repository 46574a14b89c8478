"""A model card says what is true of the exported folder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from exported_model import loaded
from tables import jsonl

from kleiber.data.tokenizers import Bytes
from kleiber.launch.cli import main
from kleiber.models.transformer import Transformer
from kleiber.records.terminal import CONTROL
from kleiber.runs.huggingface import ModelCard, card_cell
from kleiber.runs.open import TrainedModel


@pytest.mark.parametrize(
    ("kind", "auto", "use"),
    [
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "text-generation"),
        ("BertForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
        ("BertModel", "AutoModel", "feature-extraction"),
    ],
)
def test_a_model_card_names_the_class_to_load_and_the_task_heads_left_out(kind, auto, use):
    model = Transformer(16, depth=1, width=32)
    model.add_head("sst2", 2)
    card = ModelCard(TrainedModel(Path("run"), model, Bytes()), kind, 1, "folder").text()
    assert f"import {auto}, AutoTokenizer" in card and f"pipeline_tag: {use}\n" in card
    assert " sst2 |\n" in card


@pytest.mark.slow
def test_a_model_card_has_the_real_folder_parameters_and_only_a_license_that_is_stated(launch, tmp_path, capsys):
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(40)]
    data = jsonl(tmp_path / "rows.jsonl", rows)
    run = launch("objective=classify", "data=labelled", f"data.path={data}", "budget.steps=1", "data.text=text")
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["export", str(run), str(first)]) == 0
    assert main(["export", str(run), str(second), "--license", "cc-by-4.0"]) == 0
    twin, _ = loaded(first)
    cards = [(folder / "README.md").read_text() for folder in (first, second)]
    assert f"from_pretrained({json.dumps(str(first))})" in cards[0]
    count = f"{sum(weight.numel() for weight in twin.parameters()):,}"
    assert f"| parameters | {count}, {count} active |" in cards[0]
    assert "\nlicense:" not in cards[0] and "--license" in cards[0]
    assert cards[1].startswith("---\nlicense: cc-by-4.0\n")
    assert main(["export", str(run), str(tmp_path / "third"), "--license", "mine\nx: y"]) == 2
    assert "--license" in capsys.readouterr().err and not (tmp_path / "third").exists()


HOSTILE = "\x1b[31m|a|\n# title\n<script>alert(1)</script>[x](http://x)`**b**\\"


def card(text: str) -> str:
    record = {
        "metrics": {f"val/{text}/loss": 2.0},
        "objective": text,
        "data": {"name": text, "config": text},
        "lr": 0.1,
    }
    model = Transformer(16, depth=1, width=32)
    model.add_head(text, 2)
    trained = SimpleNamespace(
        folder=Path("runs") / text.replace("/", ""), stage=text, step=3, record=record,
        model=model, config={},
        summary={"config_hash": text, "commit": text, "dirty": True, "seed": text},
    )  # fmt: skip
    return ModelCard(trained, "LlamaForCausalLM", 1, "folder").text()


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
