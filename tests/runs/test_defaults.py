"""The defaults of fine-tuning: where they apply, and what a config sets stays. Rates by width: test_inherit.py."""

import json

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.runs.defaults import changed_defaults, with_defaults

BERT = {"model_type": "bert", "hidden_size": 50, "max_position_embeddings": 128}
TASK = ["objective=classify", "data=labelled", "data.path=x"]


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    (folder / "config.json").write_text(json.dumps(BERT))
    composer = Composer()

    def config(*overrides: str) -> dict:
        return resolve_config(composer.compose([*TASK, "model=hf", f"model.path={folder}", *overrides]))[0]

    return config


def test_classification_from_trained_weights_has_defaults_of_its_own(composed):
    before = composed()
    after = with_defaults(before, set())
    assert changed_defaults(before, after) == ["optimizer.lr=0.001", "schedule.decay=0.9", "objective.scale=16"]


@pytest.mark.parametrize("options", [["model.weights=random"], ["objective=reward", "data=preference"]])
def test_a_new_model_and_another_objective_have_only_a_rate(composed, options):
    before = composed(*options)
    assert [text.partition("=")[0] for text in changed_defaults(before, with_defaults(before, set()))] == [
        "optimizer.lr"
    ]


def test_what_is_set_stays(composed):
    before = composed("schedule=cosine", "objective.scale=2", "optimizer.lr=0.5")
    assert changed_defaults(before, with_defaults(before, set())) == []
    same = composed("schedule.decay=0.2")
    assert with_defaults(same, {"schedule.decay"})["schedule"]["decay"] == 0.2
