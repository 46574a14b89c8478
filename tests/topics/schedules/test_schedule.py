"""The design schedule: runs that determine a law of schedules, and the decay that a law chooses."""

from dataclasses import dataclass

import pytest

from kleiber.studies.designs.design import parse_lines
from kleiber.studies.laws import laws_json
from kleiber_topics.schedules.choice import best_decay
from kleiber_topics.schedules.schedule import Schedules

from .planted import curves, fit


@dataclass
class Context:
    batch_tokens: int = 1000


def test_without_a_law_three_schedules_have_equal_tokens_rate_and_seeds():
    cells = [parse_lines(cell) for cell in Schedules("1M", 0.01, seeds=2).cells(Context())]
    assert (
        [cell["study.arm"] for cell in cells]
        == [cell["schedule"] for cell in cells]
        == ["constant", "cosine", "wsd"] * 2
    )
    assert {(cell["budget.tokens"], cell["optimizer.lr"]) for cell in cells} == {("1M", "0.01")}
    assert [cell["seed"] for cell in cells] == ["0"] * 3 + ["1"] * 3


@pytest.mark.slow
def test_a_law_chooses_the_decay_for_the_steps_of_the_budget(tmp_path, capsys):
    table = curves(noise=1e-3)
    law = fit(table, bootstrap=40)
    laws_json.write(law, tmp_path / "law.json")
    cells = Schedules("12M", 3e-4, str(tmp_path / "law.json"), seeds=1).cells(Context())
    chosen = best_decay(law, {"steps": 12000, "lr": 3e-4})["decay"]["value"]
    arms = {parse_lines(cell)["study.arm"]: parse_lines(cell) for cell in cells}
    assert list(arms) == ["best", "wsd", "cosine"] and float(arms["best"]["schedule.decay"]) == chosen
    assert arms["best"]["schedule"] == "wsd" and "schedule.decay" not in arms["wsd"]
    assert f"best decay {chosen:.2f}" in capsys.readouterr().out


@pytest.mark.slow
def test_a_law_of_one_schedule_chooses_nothing(tmp_path):
    table = curves(("constant",), noise=1e-3)
    laws_json.write(fit(table, bootstrap=0), tmp_path / "law.json")
    with pytest.raises(ValueError, match=r"design\.law="):
        Schedules("12M", 3e-4, str(tmp_path / "law.json")).cells(Context())
