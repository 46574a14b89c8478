"""The defaults of fine-tuning: where they apply, and what a config sets stays. Rates by width: test_inherit.py."""

import json

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.stages import stage_configs
from kleiber.runs.defaults import changed_defaults, with_defaults
from kleiber.runs.inherit import complete_config

BERT = {"model_type": "bert", "hidden_size": 50, "max_position_embeddings": 128}
TASK = ["objective=classify", "data=labelled", "data.path=x"]


def never(key: str) -> bool:
    return False


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
    after = with_defaults(before, never)
    assert changed_defaults(before, after) == ["optimizer.lr=0.0007", "schedule.decay=0.9", "objective.scale=16"]


@pytest.mark.parametrize("options", [["model.weights=random"], ["objective=reward", "data=preference"]])
def test_a_new_model_and_another_objective_have_only_a_rate(composed, options):
    before = composed(*options)
    assert [text.partition("=")[0] for text in changed_defaults(before, with_defaults(before, never))] == [
        "optimizer.lr"
    ]


def test_what_is_set_stays(composed):
    before = composed("schedule=cosine", "objective.scale=2", "optimizer.lr=0.5")
    assert changed_defaults(before, with_defaults(before, never)) == []
    same = composed("schedule.decay=0.2")
    assert with_defaults(same, {"schedule.decay"}.__contains__)["schedule"]["decay"] == 0.2


STANDARD = "model/parametrization=standard"  # 128 wide: .3 / 128 from scratch, .035 / 128 from trained weights
PAIRS = "data:{_target_:kleiber.data.Preference,path:x}"
DPO = f"{{{PAIRS},objective:{{_target_:kleiber.objectives.DPO}}}}"


@pytest.mark.parametrize(
    ("options", "stages", "rates"),
    [
        ([STANDARD, "adapter=lora"], "{one:{},two:{}}", [2.3e-3, 2.7e-3]),
        ([STANDARD], "{one:{optimizer:{lr:0.02}},two:{},three:{}}", [0.02, 2.7e-4, 2.7e-4]),
        ([STANDARD], "{one:{},two:{optimizer:{_target_:kleiber.optimizers.Lion}}}", [2.3e-3, 5.5e-5]),
        ([], f"{{one:{{}},two:{DPO}}}", [0.02, 2e-3]),
        ([], f"{{one:{DPO},two:{{}}}}", [2e-3, 0.02]),
        ([STANDARD, "optimizer.lr=0.005", "adapter=lora"], "{one:{},two:{}}", [0.005, 0.005]),
        (["adapter=lora"], "{one:{},two:{}}", [0.02, 0.02]),
    ],
)
def test_each_stage_of_a_chain_has_the_rate_of_its_own_objective_adapter_and_start(options, stages, rates):
    overrides = [*options, "stages=chain", f"stages.chain={stages}"]
    before = resolve_config(Composer().compose(overrides))[0]
    after = with_defaults(before, never)
    assert [stage["optimizer"].get("lr") for stage in stage_configs(after).values()] == rates
    if len(set(rates)) == 1:
        assert after == before, "the hash stays"
    else:
        assert any(text.startswith("stages.chain.") for text in changed_defaults(before, after))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, 0.021])
def test_a_rate_in_a_file_of_the_user_stays_even_where_it_is_the_default_of_the_class(tmp_path, rate):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\noptimizer: {{lr: {rate}}}\n")
    overrides, composer = ["experiment=mine", STANDARD], Composer(config_dir=str(tmp_path))
    config = resolve_config(composer.compose(overrides))[0]
    assert complete_config(config, overrides, composer=composer)["optimizer"]["lr"] == rate
    plain = resolve_config(composer.compose([STANDARD]))[0]
    assert complete_config(plain, [STANDARD], composer=composer)["optimizer"]["lr"] == 2.3e-3
