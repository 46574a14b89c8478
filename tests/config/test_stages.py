"""Every stage of a chain has a complete config; names and tokens of branches follow from how they are written."""

import copy

import pytest

from kleiber.config.errors import ConfigError
from kleiber.config.stages import (
    LATER_STAGE_KEYS,
    SINGLE_STAGE,
    branch_name,
    branch_tokens,
    check_name,
    has_pretrained_weights,
    merge_nodes,
    stage_config,
    stage_configs,
    stage_names,
    starts_from_weights,
    trains_tokenizer,
)

CONFIG = {
    "data": {"_target_": "kleiber.data.Text", "path": "a", "tokenizer": "bpe"},
    "optimizer": {"_target_": "kleiber.optimizers.AdamW", "lr": 0.1},
    "budget": {"tokens": "1M", "steps": None},
    "retention": {"ewc": {"strength": 1}},
    "adapter": {"_target_": "kleiber.adapters.LoRA"},
    "stages": None,
}


def chain(**stages) -> dict:
    return {**copy.deepcopy(CONFIG), "stages": {"chain": stages}}


def test_a_run_without_a_chain_is_a_single_stage():
    assert stage_configs(CONFIG) == {SINGLE_STAGE: CONFIG} and stage_names(CONFIG) == [SINGLE_STAGE]


def test_nodes_are_merged_targets_replace_and_budgets_are_replaced_as_a_whole():
    target = {"_target_": "kleiber.data.Builtin"}
    config = chain(first={}, second={"optimizer": {"lr": 0.2}, "data": target, "budget": {"steps": 5}})
    config["budget"]["tokens"] = None
    before = copy.deepcopy(config)
    stages = stage_configs(config)
    assert list(stages) == stage_names(config) == ["first", "second"]
    assert stages["second"]["optimizer"] == {"_target_": "kleiber.optimizers.AdamW", "lr": 0.2}
    assert stages["second"]["data"] == target and stages["first"]["data"] == CONFIG["data"]
    assert stages["second"]["budget"] == {"tokens": None, "steps": 5}
    stages["second"]["optimizer"]["lr"] = 7
    assert config == before, "stages share nothing with the config of the run"
    assert stage_config(config, "first")["budget"] == config["budget"] and stage_config(config, "4M") == config


@pytest.mark.parametrize(
    ("total", "declared", "expected"),
    [
        ({"tokens": "60K"}, [{"tokens": "4M"}, {"tokens": "1M"}], [{"tokens": 48_000}, {"tokens": 12_000}]),
        ({"tokens": "60K"}, [{"steps": 1}, {"steps": 3}], [{"tokens": 15_000}, {"tokens": 45_000}]),
        ({"flops": 1e12}, [{}, {}], [{"flops": 1e12}, {"flops": 1e12}]),
        ({"steps": 5}, [{"tokens": 7}, {}], [{"tokens": 7}, {"steps": 5}]),
        ({"epochs": 6}, [{"epochs": 2}, {"epochs": 1}], [{"epochs": 4}, {"epochs": 2}]),
        ({"epochs": 3}, [{}, {"tokens": 7}], [{"epochs": 3}, {"tokens": 7}]),
        ({"steps": 5}, [{"ratio": 2}] * 3, [{"steps": 2}, {"steps": 1}, {"steps": 2}]),
        ({"steps": 1}, [{"ratio": 1}, {"ratio": 99}], [{"steps": 1}, {"steps": 1}]),
        ({}, [{"steps": 5}, {}], [{"steps": 5}, {}]),
    ],
    ids=str,
)
def test_the_budget_of_the_run_is_the_total_of_stages_with_budgets(total, declared, expected):
    stages = {f"s{i}": {"budget": {**budget, "stop_at_loss": i}} if budget else {} for i, budget in enumerate(declared)}
    config = {**chain(**stages), "budget": {"tokens": None, "stop_at_loss": 9, **total}}
    budgets = [stage["budget"] for stage in stage_configs(config).values()]
    assert [{key: value for key, value in budget.items() if value is not None} for budget in budgets] == [
        {**limits, "stop_at_loss": i if declared[i] else 9} for i, limits in enumerate(expected)
    ]


def test_the_target_loss_of_the_run_is_that_of_a_stage_with_another_limit():
    config = chain(a={"budget": {"steps": 5}}, b={"budget": {"steps": 5, "stop_at_loss": None}})
    config["budget"] = {"tokens": None, "steps": None, "stop_at_loss": 6.0}
    assert [stage["budget"]["stop_at_loss"] for stage in stage_configs(config).values()] == [6.0, None]


def test_epochs_are_no_total_of_stages_with_other_budgets():
    config = {**chain(a={"budget": {"tokens": 4}}, b={"budget": {"tokens": 1}}), "budget": {"epochs": 1}}
    with pytest.raises(ConfigError, match=r"budget\.epochs=1 .*set budget\.tokens"):
        stage_configs(config)


def test_a_total_of_budgets_of_different_kinds_is_refused():
    with pytest.raises(ConfigError, match=r"budget\.tokens=1e\+06 .* steps, tokens"):
        stage_configs(chain(a={"budget": {"tokens": "1M"}}, b={"budget": {"steps": 5}}))
    with pytest.raises(ConfigError, match=r"stages\.chain\.a\.budget\.tokens: '20Q'"):
        stage_configs(chain(a={"budget": {"tokens": "20Q"}}, b={"budget": {"tokens": 1}}))
    with pytest.raises(ConfigError, match=r"stages\.chain\.b\.budget\.tokens=1 and stages\.chain\.b\.budget\.steps=2"):
        stage_configs(chain(a={}, b={"budget": {"tokens": 1, "steps": 2}}))


def test_retention_and_adapter_of_the_run_belong_to_every_stage_but_the_first():
    stages = stage_configs(chain(a={}, b={}, c={"retention": {"replay": {}}}))
    assert all(stages["a"][key] is None for key in LATER_STAGE_KEYS)
    assert all(stages["b"][key] == CONFIG[key] for key in LATER_STAGE_KEYS)
    assert stages["c"]["retention"] == {"replay": {}}, "methods are replaced, not merged"


def test_a_key_that_no_stage_can_set_is_named():
    with pytest.raises(ConfigError, match=r"stages\.chain\.b\.modle"):
        stage_configs(chain(a={}, b={"modle": {}}))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": 1}, None, None),
        (1, {"a": 2}, {"a": 2}),
    ],
)
def test_merging_keeps_the_other_keys(old, new, expected):
    assert merge_nodes(old, new) == expected


def test_branches_are_sorted_by_tokens_and_named_as_written():
    assert branch_tokens(["4M", 2000, 1_500_000]) == [("2000", 2000.0), ("1.5M", 1.5e6), ("4M", 4e6)]
    assert branch_name(2e6) == "2M" and branch_name("2e6") == "2e6"
    assert stage_names({**CONFIG, "stages": {"branches": ["2M", "1M"]}}) == ["trunk", "1M", "2M"]


def test_trained_tokenizers_and_weights_are_recognized():
    assert trains_tokenizer(CONFIG) and trains_tokenizer({"data": {"data": CONFIG["data"], "tokenizer": None}})
    assert not trains_tokenizer({"data": {"data": CONFIG["data"], "tokenizer": "bytes"}})  # which replaces bpe
    assert not trains_tokenizer({"data": {"path": "a"}})
    assert [starts_from_weights({"init": init}) for init in (None, {"_target_": "kleiber.runs.Scratch"})] == [False] * 2
    assert starts_from_weights({"init": {"_target_": "kleiber.runs.Checkpoint"}})
    hf = {"_target_": "kleiber.models.HFModel"}
    assert has_pretrained_weights(hf) and not has_pretrained_weights({**hf, "weights": "random"})


OUTSIDE = ["../../../escaped", "..", ".", ".hidden", "a/b", "a\\b", "/tmp/x", "a b", "a\n", "", "ü", "x" * 101, 1, None]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_could_lead_out_of_the_run_is_refused(name):
    with pytest.raises(ConfigError, match=r"data\.name"):
        check_name("data.name", name)
    with pytest.raises(ConfigError, match=r"stages\.chain"):
        stage_configs(chain(a={}) | {"stages": {"chain": {"a": {}, name: {}}}})


@pytest.mark.parametrize("name", ["a", "1M", "ag_news", "trec-6", "v1.2", "x" * 100])
def test_a_plain_name_is_accepted(name):
    check_name("data.name", name)
    assert list(stage_configs(chain(first={}, **{name: {}}))) == ["first", name]
