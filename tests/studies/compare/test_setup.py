"""What the arms of a comparison are, and what they share, in the tables of its report."""

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.arms import rates_to_add, read_ladders, wider_grid
from kleiber.studies.compare.setup import arms_table, changes, recipe_table, shared_overrides

from ..arm_runs import write

STUDY = {"_target_": "kleiber.studies.Compare"}


def read(tmp_path):
    write(tmp_path, STUDY, "base", 3.0)
    write(tmp_path, STUDY, "changed", 2.9)
    runs = read_runs(tmp_path)
    for run in runs:
        arm, lines = run.config["study"]["arm"], ["study=compare", "data=wikitext"]
        run.config["design"] = {"arms": {"base": {}, "changed": {"study.arm": "changed", "optimizer": "muon"}}}
        run.summary["overrides"] = [f"study.arm={arm}", f"seed={run.config['seed']}", *lines]
        (run.folder / "overrides.yaml").unlink(missing_ok=True)
    return runs


def arm_of(run):
    return run.config["study"]["arm"]


def test_the_arms_are_what_they_change_and_the_rest_is_shared(tmp_path):
    runs = read(tmp_path)
    arms = {name: ladder[-1] for name, ladder in read_ladders(runs).items()}
    base, changed = arms_table(runs, arm_of, arms, {"changed": "Muon"})
    assert (base["arm"], base["changes"], changed["arm"], changed["changes"]) == (
        "base", "nothing", "Muon", "optimizer=muon",
    )  # fmt: skip
    assert changed["seeds"] == 3 and len(changed["learning rates"].split(", ")) == 5
    shared = {row["what"]: row["value"] for row in recipe_table(runs, arm_of, arms)}
    assert shared["command"] == "kleiber train study=compare data=wikitext"
    assert shared["cost"].startswith(f"{len(runs)} runs, ")
    assert shared_overrides([]) == [] and changes("other", runs) == ""


def test_the_rates_that_would_tune_an_arm_are_evenly_spaced_around_its_best(tmp_path):
    assert wider_grid([0.01], 0.01) == [0.0025, 0.005, 0.01, 0.02, 0.04]
    grid = wider_grid([0.01, 0.02, 0.04, 0.08, 0.16], 0.16)
    assert grid[:5] == [0.01, 0.02, 0.04, 0.08, 0.16] and grid[5:] == [0.32]
    assert wider_grid([0.1, 0.3], 0.1)[0] < 0.1 and len(wider_grid([0.1, 0.3], 0.1)) == 5
    arms = [ladder[-1] for ladder in read_ladders(read(tmp_path)).values()]
    assert rates_to_add(arms).startswith("add rates: `design.lrs=[")
