"""The form of a composed config: what is no node, budget or chain is refused with its key before it is completed."""

import re

import pytest

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import ConfigError
from kleiber.config.structure import check_structure
from kleiber.runs.inherit import complete_config

CONFIG = resolve_config(Composer().compose([]))[0]
CHAIN = "kleiber.runs.Chain"
MLM = {"_target_": "kleiber.objectives.MLM"}


def chain(stages):
    return {"stages": {"_target_": CHAIN, "chain": stages}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model=None"),
        ({"data": None}, "data=None"),
        ({"objective": {"mode": "x"}}, "objective={'mode': 'x'}"),
        ({"optimizer": "adamw"}, "optimizer=adamw"),
        ({"retention": ["ewc"]}, "retention=['ewc']"),
        ({"budget": "4M"}, "budget=4M"),
        ({"budget": {"tokens": ["1M"]}}, "budget.tokens=['1M']"),
        ({"budget": {"tokens": True}}, "budget.tokens=True"),
        (chain("abc"), "stages.chain=abc"),
        (chain(["a", "b"]), "stages.chain=['a', 'b']"),
        (chain({"a": 3, "b": {}}), "stages.chain.a=3"),
        (chain({"a": None, "b": {}}), "stages.chain.a=None"),
        (chain({"a": {}, "b": {"optimizer": 3}}), "stages.chain.b.optimizer=3"),
        (chain({"a": {"data": None}, "b": {}}), "stages.chain.a.data=None"),
        (chain({"a": {"budget": "4M"}, "b": {}}), "stages.chain.a.budget=4M"),
        (chain({"a": {"budget": {"tokens": [1]}}, "b": {}}), "stages.chain.a.budget.tokens=[1]"),
        (chain({"a": {}, "b": {"retention": ["ewc"]}}), "stages.chain.b.retention=['ewc']"),
    ],
)
def test_a_value_of_another_form_is_refused_with_its_key(changes, message):
    with pytest.raises(ConfigError, match=re.escape(f"{message} ")):
        complete_config(CONFIG | changes, [])


def test_a_stage_that_names_a_choice_is_told_its_node():
    with pytest.raises(ConfigError, match=r"stages\.chain\.b\.objective=mlm .* kleiber\.objectives\.MLM"):
        check_structure(CONFIG | chain({"a": {}, "b": {"objective": "mlm"}}))


def test_nodes_nulls_and_budgets_of_stages_pass():
    check_structure(CONFIG)
    stages = {"a": {"budget": {"tokens": "4M"}}, "b": {"objective": MLM, "adapter": None, "budget": None}}
    check_structure(CONFIG | chain(stages))


@pytest.mark.parametrize("model", [{"aspect": None}, {"aspect": None, "width": None}, {"depth": "abc"}])
def test_a_default_rate_is_not_derived_from_a_width_that_the_check_refuses(model):
    standard = {"_target_": "kleiber.nn.StandardParametrization"}
    config = CONFIG | {"model": {**CONFIG["model"], "parametrization": standard, **model}}
    assert complete_config(config, [])["model"] == config["model"]
