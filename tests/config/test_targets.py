"""Signatures read from source are those of the imported objects, and only allowed targets are imported or built."""

import importlib
import inspect
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from kleiber.config.check import check_node
from kleiber.config.errors import ConfigError
from kleiber.config.extensions import conf_dir, runtime_signature
from kleiber.config.targets import build, check_buildable, class_attribute, exports, signature
from kleiber.objectives import DPO

LWF = {"_target_": "kleiber.retention.LwF", "strength": 2.0}
STRANGERS = [
    "os.system",
    "pandas.read_pickle",
    "torch.load",
    "kleiber.records.folder.set_aside",
    "kleiber.studies.laws.law.from_file",
    "kleiber.config.targets.build",
]


def targets() -> list[str]:
    """Every `_target_` in the files of conf/."""
    lines = [line.split() for path in conf_dir().rglob("*.yaml") for line in path.read_text().splitlines()]
    return sorted({parts[1] for parts in lines if parts[:1] == ["_target_:"]})


def test_signatures_read_from_source_are_those_of_the_objects():
    assert len(targets()) > 60
    for target in targets():
        imported = {
            name: p
            for name, p in inspect.signature(get_object(target)).parameters.items()
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        }
        read = signature(target).parameters
        assert set(read) == set(imported), target  # a config names arguments, so their order does not matter
        for name, parameter in imported.items():
            assert read[name].required == (parameter.default is parameter.empty), (target, name)
            if read[name].default is not None:  # a default that is no literal is not read
                assert read[name].default == parameter.default, (target, name)


def test_an_argument_that_is_any_object_takes_any_value():
    claims = [{"of": {"arm": "b", "width": 32}, "against": {"arm": "a"}, "margin": 0.1}]
    check_node("study", {"_target_": "kleiber.studies.Compare", "claims": claims})
    with pytest.raises(ConfigError, match=r"study\.claims"):
        check_node("study", {"_target_": "kleiber.studies.Compare", "claims": 3})


@pytest.mark.parametrize("target", ["this.s", "os.system", "kleiberx.a", "lightning.pytorch.callbacksx.Y"])
def test_a_target_of_another_package_is_refused_and_not_imported(target):
    sys.modules.pop("this", None)
    with pytest.raises(ConfigError, match=target):
        signature(target)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "target",
    [
        "lightning.pytorch.callbacks.NoSuchThing",
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.bisect_right",
        "kleiber.optimizers.adamw.AdamW",
        "kleiber.no.X",
    ],
)
def test_a_target_that_does_not_exist_or_is_not_exported_is_refused(target):
    with pytest.raises(ConfigError, match=target.rpartition(".")[2]):
        signature(target)


def test_an_allowed_target_of_another_package_has_its_signature():
    parameters = signature("lightning.pytorch.callbacks.EarlyStopping").parameters
    assert parameters["monitor"].required and parameters["patience"].default == 3


@pytest.mark.parametrize(("name", "choice"), [("SGD", "sgd"), ("Adam", "adamw"), ("Muon", "muon"), ("Rprop", "adamw")])
def test_an_optimizer_of_torch_is_refused_with_the_choice_to_write(name, choice):
    with pytest.raises(ConfigError) as refused:
        signature(f"torch.optim.{name}")
    assert f"torch.optim.{name}" in str(refused.value) and f"optimizer={choice}" in str(refused.value)


MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING
from kleiber.optimizers import AdamW
if TYPE_CHECKING:
    from kleiber.types import Count

@dataclass(frozen=True)
class Slow(AdamW):
    pause: int = 3

class Slower(Slow):
    pass

class Checked:
    def __init__(self, size: Count) -> None: ...
"""


def test_a_class_that_inherits_fields_needs_no_names_of_their_module(tmp_path, monkeypatch):
    (tmp_path / "slow_optimizers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("slow_optimizers")
    inherited = signature("kleiber.optimizers.AdamW").parameters
    for target in (module.Slow, module.Slower):
        parameters = runtime_signature(target, "mine").parameters
        assert parameters["pause"].annotation is int
        assert all(parameters[name].annotation == inherited[name].annotation for name in ("lr", "weight_decay"))
    assert runtime_signature(module.Checked, "mine").parameters["size"].required


def test_class_attributes_are_inherited_and_only_literals_are_read():
    for name in ("compares_answers", "default_epochs", "learning_rate_factor", "metric"):
        assert class_attribute("kleiber.objectives.DPO", name) == inspect.getattr_static(DPO, name), name
    assert class_attribute("kleiber.objectives.DPO", "no_such_attribute") is None
    assert exports("kleiber.no_such_package") == {}


def test_supplied_values_go_to_the_arguments_of_their_name(tmp_path: Path):
    class Corpus:
        pass

    corpus = Corpus()
    node = OmegaConf.create({"_target_": "kleiber.optimizers.AdamW", "lr": 0.5})
    assert build(node, folder=tmp_path, corpus=corpus).lr == 0.5
    with pytest.raises(AssertionError, match="surprise"):
        build(node, surprise=1)


@pytest.mark.parametrize("node", [LWF, OmegaConf.create(LWF)], ids=["plain", "DictConfig"])
def test_a_node_becomes_its_object(node):
    assert build(node).strength == 2.0


def test_a_target_gets_the_supplied_values_that_it_has_arguments_for():
    node = {"_target_": "kleiber.models.Transformer", "depth": 1, "width": 32, "num_heads": 2, "context": 8}
    assert build(node, vocab_size=11, folder="unused").vocab_size == 11


@pytest.mark.parametrize("target", STRANGERS)
@pytest.mark.parametrize("place", ["itself", "argument", "list"])
def test_a_class_that_is_not_exported_is_refused_wherever_it_stands(target, place):
    stranger = {"_target_": target}
    node = {"itself": stranger, "argument": {**LWF, "strength": stranger}, "list": {**LWF, "strength": [stranger]}}
    with pytest.raises(ConfigError, match=target):
        build(node[place])


def test_an_interpolation_is_refused_and_never_resolved(monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    for node in ({**LWF, "strength": "${oc.env:SECRET}"}, DictConfig({**LWF, "strength": ["${oc.env:SECRET}"]})):
        with pytest.raises(ConfigError, match="strength") as error:
            build(node)
        assert "hunter2" not in str(error.value)


def test_plain_values_of_any_depth_pass():
    check_buildable({"a": [1, None, {"b": "text with $ and {}"}], "c": (True, 0.5)})


def test_what_is_wrong_within_a_nested_node_is_told_as_if_it_were_at_the_top():
    measures = {"loss": "loss"}
    panel = {"_target_": "kleiber.studies.Panel", "measures": measures, "figures": [{"name": "x", "form": "nope"}]}
    node = {"_target_": "kleiber.studies.Compare", "measure": "loss", "panel": panel}
    with pytest.raises(ValueError, match=r"study\.figures\[0\]\.form=nope"):
        build(node)


def test_an_answer_whose_value_is_no_mapping_names_it():
    answer = {"text": "{x}", "values": {"x": None}}
    with pytest.raises(ValueError, match=r"study\.answer\.values\.x=None"):
        build({"_target_": "kleiber.studies.Panel", "measures": {"loss": "loss"}, "answer": answer})
