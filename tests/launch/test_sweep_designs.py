"""Sweeps of designs and studies: which cells run, what a dry run prices, and which plans are refused."""

import pytest

from kleiber.launch.main import main
from kleiber.records.catalog import read_runs

SWEEP = ["-m", "name=first", "launcher=basic"]


@pytest.mark.slow
def test_a_design_is_multiplied_by_the_sweep_whose_keys_take_precedence(seeds, tmp_path):
    design = ["design=grid", "design.widths=[32,64]", "design.seeds=1"]
    assert main([*SWEEP, *design, "budget.steps=3,4"]) == 0
    assert [run.summary["name"] for run in read_runs(tmp_path / "root" / "first")] == ["first"] * 4
    assert seeds == [0] * 4
    seeds.clear()
    assert main([*SWEEP, *design, "seed=2,3", "budget.steps=5"]) == 0
    assert seeds == [2, 3, 2, 3]
    assert not [run.name for run in read_runs(tmp_path / "root" / "first") if run.name.count("seed") > 1]


@pytest.mark.slow
def test_a_study_starts_a_sweep_and_is_reported_at_the_end(seeds, tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr("kleiber.launch.sweep.write_report", lambda *arguments: reports.append(arguments) or 0)
    command = ["study=scaling", "launcher=basic", "design.widths=[32,48,64]", "design.seeds=1"]
    assert main(command) == 0
    assert seeds == [0, 0, 0]
    assert main([*command, "study.min_tokens=3k"]) == 0
    assert seeds == [0, 0, 0], "another question to the same cells"
    (folder, study), (same_folder, other) = reports
    assert folder == same_folder == tmp_path / "root" / "scaling"
    assert study["min_tokens"] != other["min_tokens"] == "3k" and study["_target_"] == other["_target_"]


def test_a_study_that_cannot_analyze_its_runs_ends_with_2_unless_it_is_a_trial(seeds, monkeypatch):
    monkeypatch.setattr("kleiber.launch.sweep.write_report", lambda *_: 2)
    study = ["study=scaling", "launcher=basic", "design.widths=[32,48,64]", "design.seeds=1"]
    assert main(study) == 2
    assert main([*study, "trainer.max_steps=5"]) == main([*study, "study.max_cells=3"]) == 0


def test_max_cells_and_seeds_of_a_study_change_the_sweep(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kleiber.launch.sweep.write_report", lambda *_: 0)
    study = ["study=scaling", "launcher=basic", "design.widths=[32,64]"]
    assert main([*study, "study.seeds=2", "study.max_cells=3"]) == 4  # seed 1 fails here
    assert seeds == [0, 1, 0] and "study.max_cells=3: 1 " in capsys.readouterr().out


@pytest.fixture
def priced(monkeypatch):
    """Estimates the same costs for every run, and collects the configs of the runs."""
    configs = []
    ends = [{"active": n, "tokens": d, "flops_per_token": 6.0 * n} for n in (1e5, 2e5, 4e5) for d in (1e6, 2e6, 4e6)]
    cell = {"params": 9, "active": 9, "flops": 2.0, "tokens": 3, "seconds": 3600.0, "seconds_per_token": 1.0}

    def estimate_costs(runs, threads, describe=False):
        configs.extend(runs.values())
        cells = [{**cell, "ends": ends} for _ in runs]
        return {
            "cells": cells,
            "memory_bytes": 2**30,
            "memory_plan": None,
            "unmeasured": None,
            "start": 0.0,
            "threads": 1,
            "description": [],
            "warnings": [],
        }

    monkeypatch.setattr("kleiber.launch.price.estimate_costs", estimate_costs)
    return configs


@pytest.mark.slow
def test_a_dry_run_of_a_design_prices_its_cells(seeds, priced, tmp_path, capsys):
    for design in (["design.widths=[32,48,64]", "design.seeds=1"], ["design=isoflop", "design.flops=1e14"]):
        priced.clear()
        assert main(["study=scaling", *design, "dry_run=true"]) == 0
        out = capsys.readouterr().out
        assert f"{2.0 * len(priced):.3g} FLOPs" in out and "interval     ±" in out
        assert f"time         {len(priced)} h of one process" in out
    assert seeds == [] and not (tmp_path / "root" / "scaling").exists()
    assert main(["study=scaling", "design=isoflop", "dry_run=true"]) == 2
    assert "design.flops" in capsys.readouterr().err


@pytest.mark.slow
def test_a_dry_run_of_a_continual_study_predicts_no_interval(priced, capsys):
    assert main(["study=continual", "design.seeds=1", "budget.tokens=100K", "dry_run=true"]) == 0
    assert "interval" not in capsys.readouterr().out and len(priced) == 12 + 2


@pytest.mark.slow
@pytest.mark.parametrize("dry", ["true", "false"])
def test_a_design_that_cannot_determine_its_law_is_refused_before_anything_is_trained(
    seeds, priced, tmp_path, capsys, dry
):
    study = ["study=scaling", "launcher=basic", "design.seeds=1", f"dry_run={dry}"]
    assert main([*study, "design.widths=[32,48,64]", "stages.branches=[4M]"]) == 2
    assert "study scaling: " in (error := capsys.readouterr().err) and "3 points" in error
    assert main([*study, "design.widths=[32,48]", "stages.branches=[1M,2M,4M,8M]", "study.min_tokens=1"]) == 2
    assert "8 points" in capsys.readouterr().err
    assert seeds == priced == [] and not list((tmp_path / "root").glob("*/*"))


def test_finished_runs_count_as_points_of_the_law(seeds, monkeypatch):
    monkeypatch.setattr("kleiber.launch.sweep.write_report", lambda *_: 0)
    study = ["study=scaling", "launcher=basic", "design.seeds=1"]
    assert main([*study, "design.widths=[32,48,64]"]) == 0
    assert main([*study, "design.widths=[96]"]) == 0 and len(seeds) == 4


@pytest.mark.slow
def test_a_study_that_answers_more_than_its_law_only_warns(seeds, priced, capsys):
    assert main(["study=moe_law", "design.widths=[32]", "dry_run=true"]) == 0
    assert "study moe_law: " in capsys.readouterr().out
