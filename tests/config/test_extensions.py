"""Classes of the reader's own packages: allowed by the environment alone, trained with, and opened again."""

import json

import pytest
from small_run import TINY

from kleiber.config.errors import ConfigError
from kleiber.config.extensions import VARIABLE, extension_prefixes
from kleiber.config.targets import class_attribute, signature
from kleiber.launch.main import main

LAB = '''
from json import loads
from kleiber.objectives.clm import CLM
from kleiber.retention import L2SP

class Scaled(CLM):
    """The loss of next tokens, scaled."""
    learning_rate_factor = 0.5

    def __init__(self, *args, factor: float = 2.0, **options):
        super().__init__(*args, **options)
        self.factor = factor

class Warmer:
    def __init__(self, steps: int = 3) -> None:
        self.steps = steps

def run(command: str) -> None:
    raise AssertionError(command)
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The package `some_lab`, which the environment allows."""
    (tmp_path / "packages" / "some_lab").mkdir(parents=True)
    (tmp_path / "packages" / "some_lab" / "__init__.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv(VARIABLE, "other_lab, some_lab")


def test_a_class_of_an_allowed_package_has_a_signature_and_attributes(lab):
    assert signature("some_lab.Warmer").parameters["steps"].default == 3
    assert class_attribute("some_lab.Scaled", "learning_rate_factor") == 0.5
    assert class_attribute("some_lab.Scaled", "unit") == class_attribute("kleiber.objectives.CLM", "unit")


@pytest.mark.parametrize("name", ["run", "loads", "L2SP.x", "Nobody", "sub.Nobody"])
def test_functions_and_names_that_are_not_there_are_refused(lab, name):
    with pytest.raises(ConfigError, match=f"some_lab.{name}"):
        signature(f"some_lab.{name}")


@pytest.mark.parametrize("value", ["", "other_lab", "some"])
def test_nothing_else_of_the_package_is_allowed_or_imported(lab, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ConfigError, match=VARIABLE):
        signature("some_lab.Warmer")


def test_what_is_no_name_of_a_package_is_refused_by_its_value(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fine, ../evil")
    with pytest.raises(ConfigError, match="evil"):
        extension_prefixes()


def test_a_run_with_an_own_objective_opens_only_for_a_reader_who_allows_it(lab, tmp_path, monkeypatch, capsys):
    own = ["objective._target_=some_lab.Scaled", "objective.factor=2.0", f"root={tmp_path}"]
    assert main([*TINY, *own]) == 0
    (folder,) = (tmp_path / "runs").glob("*/")
    assert json.loads((folder / "summary.json").read_text())["stages"][0]["lr"] == 0.01
    again = [*TINY, "init=checkpoint", f"init.path={folder}", f"root={tmp_path}", "name=again"]
    assert main(again) == 0
    monkeypatch.delenv(VARIABLE)
    capsys.readouterr()
    assert main([*again, "seed=1"]) == 2
    assert "some_lab.Scaled" in capsys.readouterr().err
