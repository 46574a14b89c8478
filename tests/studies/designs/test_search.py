"""The design of a search: its values, its rounds of halving, the held-out seeds, its budget and its errors."""

import json
import math
import sys

import numpy as np
import pytest

from kleiber.config.check import check_node
from kleiber.config.errors import ConfigError
from kleiber.studies.designs.design import parse_lines
from kleiber.studies.designs.search import Search, read_space
from tests.studies.search_runs import KEYS, Folder, train


class Small(Folder):
    """A context that knows the cost of a token and the speed of the machine."""

    def __init__(self, folder):
        super().__init__(folder)
        self.model = {"width": 32}

    def size(self, width):
        return type("Size", (), {"flops_per_token": 100.0 * width})()

    def speed(self, widths):
        return [1e6 for _ in widths]


def test_values_fill_their_ranges_and_stay_when_trials_are_added():
    design = Search(KEYS, trials=64)
    cells = [level.values for level in design.levels(64)]
    rates = np.log([float(values["optimizer.lr"]) for values in cells])
    counts, _ = np.histogram(rates, np.linspace(math.log(0.001), math.log(0.1), 9))
    assert counts.min() >= 6 and {values["batch.tokens"] for values in cells} == {"256", "512", "1024", "2048"}
    assert [level.values for level in design.levels(20)] == cells[:20]
    plain = [level.values for level in Search(KEYS, sampler="random").levels(20)]
    assert plain == [level.values for level in Search(KEYS, sampler="random").levels(30)][:20] != cells[:20]
    assert Search(KEYS, sampler_seed=1).levels(4) != design.levels(4)


def test_a_range_is_rounded_and_a_choice_keeps_its_values():
    steps = read_space("schedule.warmup_steps", {"log": [10, 400], "round": 5})
    assert (steps.value(0.0), steps.value(0.999), steps.value(0.5)) == (10, 400, 65)
    assert read_space("x", {"linear": [0, 1], "round": 0.25}).value(0.6) == 0.5
    wide = read_space("schedule.warmup_steps", {"log": [10, 430], "round": 50})
    assert (wide.value(0.0), wide.value(0.999)) == (50, 400), "multiples within the range"
    assert read_space("model/mlp", ["swiglu", "gelu"]).value(0.7) == "gelu"


def test_halving_keeps_the_best_and_new_seeds_train_the_finalists(tmp_path):
    design = Search(KEYS, trials=18, tokens=["100K", "400K"], finalists=2, seeds=3, controls=2)
    first, second, last = train(tmp_path, design)
    assert [len(first), len(second), len(last)] == [18, 8, 6] and design.cost(18) == 18 * 1e5 + 8 * 4e5 + 6 * 4e5
    rate = {values["study.arm"]: float(values["optimizer.lr"]) for values in map(parse_lines, first)}
    order = sorted(rate, key=lambda trial: abs(math.log(rate[trial] / 0.01)))
    assert {parse_lines(cell)["study.arm"] for cell in second[:6]} == set(order[:6])
    assert {parse_lines(cell)["study.arm"] for cell in second[6:]} <= set(order[6:])
    assert {parse_lines(cell)["study.arm"] for cell in last} == set(order[:2])
    assert sorted({parse_lines(cell)["seed"] for cell in last}) == ["1", "2", "3"]
    assert [*design.rounds(Folder(tmp_path))] == [first, second, last]  # a repeated command plans the same cells


def test_equal_trials_are_trained_once_and_take_one_place_among_the_finalists(tmp_path):
    design = Search(
        {"optimizer.lr": [0.001, 0.003, 0.01, 0.03]}, trials=16, tokens=["100K", "400K"], finalists=3, seeds=2
    )
    first, second, last = train(
        tmp_path, design, lambda values, *_: abs(math.log(float(values["optimizer.lr"]) / 0.01))
    )
    rates = [[parse_lines(cell)["optimizer.lr"] for cell in cells] for cells in (first, second, last)]
    assert sorted(rates[0]) == sorted(rates[1]) == ["0.001", "0.003", "0.01", "0.03"]
    assert sorted(rates[2]) == sorted(["0.003", "0.01", "0.03"] * 2)


def test_trials_that_diverged_go_no_further_and_a_search_without_any_ends(tmp_path, capsys):
    def loss(values, seed, tokens):
        return math.inf if float(values["optimizer.lr"]) > 0.004 else 2.0

    design = Search(KEYS, trials=8, tokens=["100K", "400K"], finalists=3, eta=2, controls=0)
    _, second, _ = train(
        tmp_path / "some", design, lambda *at: json.loads(json.dumps(loss(*at))) if loss(*at) < 9 else 1e9
    )
    assert len(second) == 4
    assert len(train(tmp_path / "none", design, lambda *at: math.nan)) == 1 and "no trial" in capsys.readouterr().out


@pytest.mark.slow
def test_tpe_proposes_better_values_and_a_repeated_command_proposes_the_same(tmp_path):
    design = Search(
        KEYS, trials=30, tokens=["100K", "400K"], finalists=2, seeds=2, controls=0, sampler="tpe", at_once=5
    )
    rounds = train(tmp_path, design)
    assert [len(cells) for cells in rounds] == [5] * 6 + [10, 4]
    rates = [float(parse_lines(cell)["optimizer.lr"]) for cells in rounds[:6] for cell in cells]
    gaps = np.abs(np.log(np.array(rates) / 0.01))
    assert np.median(gaps[15:]) < 0.7 * np.median(gaps[:10])  # the first ten are random
    assert [*design.rounds(Folder(tmp_path))] == rounds
    other = Search(KEYS, trials=5, finalists=2, sampler="tpe", sampler_seed=1)
    assert next(other.rounds(Folder(tmp_path))) != rounds[0]


def test_tpe_goes_on_after_trials_that_diverged(tmp_path):
    design = Search(KEYS, trials=12, tokens=["100K"], finalists=2, seeds=2, sampler="tpe", at_once=4)
    rounds = train(
        tmp_path, design, lambda values, seed, tokens: math.nan if float(values["optimizer.lr"]) > 0.05 else 2.0
    )
    assert [len(cells) for cells in rounds] == [4, 4, 4, 4]


def test_tpe_without_optuna_is_refused_before_a_trial(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"kleiber\[optuna\]"):
        next(Search(KEYS, sampler="tpe").rounds(Folder(tmp_path)))


def test_a_budget_limits_the_trials(tmp_path):
    options = {"trials": 50, "tokens": ["100K"], "finalists": 2, "seeds": 2}
    context, cost = Small(tmp_path), Search(KEYS, **options).cost(20) * 3200
    assert Search(KEYS, **options, flops=cost * 1.01).affordable(context) == 20
    assert Search(KEYS, **options, hours=cost * 1.01 / 1e6 / 3600).affordable(context) == 20
    wide = {**KEYS, "model.width": [32, 64]}
    assert Search(wide, **options, flops=cost * 1.01).affordable(context) < 20
    with pytest.raises(ValueError, match=r"raise design\.flops"):
        Search(KEYS, **options, flops=1e6).affordable(context)
    with pytest.raises(ValueError, match=r"model\.depth"):
        Search({"model.depth": [1, 2]}, **options, flops=cost).affordable(context)


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [({}, {}, "at least one key"), ({"seed": [1, 2]}, {}, "must not have seed"), ({"a": [1]}, {}, "two choices"),
     ({"a": {"log": [0, 1]}}, {}, "> 0"), ({"a": {"linear": [2, 1]}}, {}, "LOW must be below"),
     ({"a": {"log": [1, 2], "linear": [1, 2]}}, {}, "must be a list"), (KEYS, {"sampler": "grid"}, "sampler=grid"),
     (KEYS, {"tokens": ["2M", "1M"]}, "ascending"), (KEYS, {"finalists": 40}, "finalists=40"),
     ({"a": {"log": [1, 2], "round": -1}}, {}, "round=-1")],
)  # fmt: skip
def test_wrong_options_are_refused(keys, options, message):
    with pytest.raises(ValueError, match=message):
        Search(keys, **options)


def test_a_single_held_out_seed_is_refused():
    node = {"_target_": "kleiber.studies.designs.Search", "keys": KEYS, "seeds": 2}
    check_node("design", node)
    with pytest.raises(ConfigError, match=r"design\.seeds=1 must be >= 2"):
        check_node("design", {**node, "seeds": 1})
