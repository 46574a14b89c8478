"""The help of `kleiber train` lists what can be chosen, that of the user included."""

import pytest

from kleiber.config.compose import Composer
from kleiber.config.help import usage
from kleiber.launch.main import main


def test_help_lists_every_group_and_choice():
    composer = Composer()
    text = usage(composer)
    assert all(f"    {group} " in text for group in composer.groups())
    assert all(choice in text for choice in composer.choices("objective"))


@pytest.mark.parametrize("place", [["--config-dir", "mine"], ["hydra.searchpath=[file://mine]"]])
def test_help_lists_choices_of_the_user(tmp_path, monkeypatch, capsys, place):
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "saw_tooth.yaml").write_text("_target_: kleiber.optimizers.WSD\n")
    monkeypatch.chdir(tmp_path)
    assert main(["--help", *place]) == 0
    assert "saw_tooth" in capsys.readouterr().out
