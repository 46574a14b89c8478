"""What may be built of a config: exported classes and plain values, with what only the run can supply."""

import pytest
from omegaconf import DictConfig, OmegaConf

from kleiber.config.errors import ConfigError
from kleiber.config.instantiate import build, check_buildable

LWF = {"_target_": "kleiber.retention.LwF", "strength": 2.0}
STRANGERS = [
    "os.system",
    "pandas.read_pickle",
    "torch.load",
    "kleiber.records.folder.set_aside",
    "kleiber.studies.laws.law.from_file",
    "kleiber.config.instantiate.build",
]


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
