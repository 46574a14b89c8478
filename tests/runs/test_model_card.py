"""A model card says what is true of the exported folder."""

import json
from pathlib import Path

import pytest
from exported_model import loaded
from tables import jsonl

from kleiber.data.tokenizers import Bytes
from kleiber.launch.cli import main
from kleiber.models.transformer import Transformer
from kleiber.runs.huggingface import ModelCard
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
