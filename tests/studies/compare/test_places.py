"""Places of runs: two runs that differ are refused at one place, in a plan and when they are read, in any order."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from kleiber.config.compose import list_choices
from kleiber.config.errors import Status
from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import read_ladders
from kleiber.studies.compare.places import Place, refuse_twins
from kleiber.studies.compare.study import Compare
from kleiber.studies.study import PlannedPoint

from ..ablation_runs import copied
from ..arm_runs import write
from ..panels import declared


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    for arm in "ab":
        write(folder, {"_target_": "kleiber.studies.Compare"}, arm, 3.0, lrs=[0.01, 0.02, 0.04], seeds=1)
    return read_runs(folder)


def test_runs_that_differ_are_refused_at_one_place_with_what_differs():
    here = Place("a", 1e6, 0.01, 0)
    runs = [(here, "x", {"objective": {"z_loss": 1e-4}}), (here, "y", {"objective": {"z_loss": 1e-3}})]
    for order in (runs, runs[::-1]):
        with pytest.raises(ValueError, match=r"objective\.z_loss \(.*design\.arms"):
            refuse_twins(order)
    refuse_twins([runs[0], (here, "z", {"objective": {"z_loss": 1e-4}, "name": "copy"})])
    refuse_twins([runs[0], *((here._replace(**at), "y", runs[1][2]) for at in ({"lr": 0.02}, {"seed": 1}))])


@pytest.mark.parametrize("name", ["_first", "z_last"])
def test_two_runs_of_an_arm_at_one_place_are_refused_whichever_is_read_first(runs, name):
    other = copied(runs[0], name, objective={"z_loss": 1e-3})
    with pytest.raises(ValueError, match=r"objective\.z_loss"):
        read_ladders(sorted([*runs, other], key=lambda run: run.name))


@pytest.mark.parametrize("name", ["_first", "z_last"])
def test_a_run_that_diverged_is_worst_only_where_no_run_of_its_rate_and_seed_ended(runs, name):
    longer = copied(runs[0], name, budget={"tokens": "16M"})
    longer = replace(longer, status=Status.DIVERGED, summary={**longer.summary, "status": "diverged", "stages": []})
    ladders = read_ladders(sorted([*runs, longer], key=lambda run: run.name))
    assert [arm.values_by_rate for arm in ladders["a"]] == [arm.values_by_rate for arm in read_ladders(runs)["a"]]
    alone = read_ladders([longer, *runs[1:]])["a"]
    assert all(math.isinf(arm.values_by_rate[runs[0].config["optimizer"]["lr"]][0]) for arm in alone)


def planned(*values, tokens=(1e6,), counted=True):
    """A plan of two arms, each at the learning rates, token counts and values of a further key."""
    return [
        PlannedPoint(
            Path(f"{arm}-{lr}-{D}-{value}"),
            {"study": {"arm": arm}, "seed": 0, "optimizer": {"lr": lr}, "data": {"unique": value}},
            1e5, D, counted,
        )
        for arm in "ab" for lr in (0.01, 0.02) for D in tokens for value in values
    ]  # fmt: skip


def is_untuned(warnings):
    """Whether they are those of the two arms, which have too few rates."""
    return [(f"for {arm}, only 2 learning rates" in text) for arm, text in zip("ab", warnings, strict=True)] == [
        True,
        True,
    ]


def test_a_plan_may_list_rates_and_budgets_of_an_arm_and_no_other_key():
    assert is_untuned(Compare().check_plan(planned(None, tokens=(1e6, 2e6))))
    with pytest.raises(ValueError, match=r"a, 1,000,000 tokens.*data\.unique \(1000, 2000\)"):
        Compare().check_plan(planned(1000, 2000))
    assert is_untuned(Compare().check_plan(planned(1000, 2000, counted=False)))  # in epochs: their tokens may differ


def test_a_plan_of_an_arm_from_two_bases_of_a_seed_is_refused_as_its_runs_would_be():
    points = [replace(point, config={**point.config, "init": {"path": "base"}}) for point in planned(None)]
    other = replace(points[0], folder=Path("other"), config={**points[0].config, "init": {"path": "wider"}})
    assert is_untuned(Compare().check_plan(points))
    with pytest.raises(ValueError, match=r"init\.path \(base, wider\)"):
        Compare().check_plan([*points, other])


@pytest.mark.parametrize(
    "name", sorted({"bias", "collapse", "explain", "memorization", "retrieval"} & {*list_choices("study")})
)
def test_a_second_learning_rate_is_refused_in_the_plan_of_a_study_that_chooses_none(name):
    init = {"path": "base", "_target_": "kleiber.runs.Checkpoint"}
    points = [
        replace(point, config={**point.config, "model": {"width": 32}, "init": init})
        for point in planned(None)
        if point.config["study"]["arm"] == "a"
    ]
    study = declared(name)
    assert all(text.startswith("study.claims") for text in study.check_plan(points[:1]))  # no other arm is planned
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        study.check_plan(points)
