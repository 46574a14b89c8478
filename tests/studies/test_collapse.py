"""The study of collapse on planted runs: changes are paired, and claims are decided where they were measured."""

import pytest
from fake_run import fake_run

from kleiber.records.catalog import read_runs
from kleiber.studies.collapse import METRICS, Collapse, generations_chart, human, scored, shown_means, stages_chart
from studies.ablation_runs import copied

PREFIX = "eval/degeneration/builtin/docs"
NOISE = [0.0, 0.3, -0.2]
ARMS = {"replace": {}, "with_real": {}}


def write(folder, arm, generation, size, seed, loss, distinct, prefix=PREFIX):
    metrics = {
        "val/builtin/docs/loss": loss + NOISE[seed], f"{prefix}/sampled/distinct_2": distinct + NOISE[seed] / 10,
        f"{prefix}/human/distinct_2": 0.8,
    }  # fmt: skip
    stage = {"metrics": metrics, "params": {"total": size, "active": size}}
    config = {"seed": seed, "study": {"arm": arm, "generation": generation}, "design": {"arms": ARMS}}
    fake_run(folder / f"{arm}-{generation}-{size}-{seed}", [stage], config=config, seed=seed)


@pytest.fixture
def folder(tmp_path):
    """Replacing raises the loss by .2 a generation (.3 for the large model), accumulating by .05."""
    for size, steep in ((1000, 0.2), (4000, 0.3)):
        for seed in range(3):
            wobble = 0.01 * (seed - 1)
            write(tmp_path, "real", 0, size, seed, 2.0, 0.7)
            for generation in (1, 2):
                write(
                    tmp_path,
                    "replace",
                    generation,
                    size,
                    seed,
                    2.0 + steep * generation + wobble,
                    0.7 - 0.1 * generation,
                )
                write(
                    tmp_path,
                    "with_real",
                    generation,
                    size,
                    seed,
                    2.0 + 0.05 * generation + wobble,
                    0.7 + 0.01 * generation,
                )
            write(tmp_path, "narrow", 0, size, seed, 2.4 + wobble, 0.6)
    return tmp_path


def test_changes_are_within_seeds_and_claims_are_decided(folder):
    findings = Collapse().analyze(read_runs(folder))
    over = {
        (row["arm"], row["parameters"], row["metric"]): row for row in findings.tables["Change from generation 0 to 2"]
    }
    row = over["replace", 4000, METRICS["loss"][0]]
    assert row["value"] == pytest.approx(0.6) and row["n"] == 3 and 0.58 < row["lo"] < row["hi"] < 0.62
    assert over["replace", 1000, METRICS["sampled/distinct_2"][0]]["value"] == pytest.approx(-0.2)
    holds = {verdict["code"]: verdict["holds"] for verdict in findings.verdicts}
    assert holds["replace_loss"] and holds["replace_distinct_2"] and holds["with_real_loss"]
    assert holds["replace_against_with_real"] and holds["replace_size"] and holds["with_real_distinct_2"] is False
    assert "with_real_size" in holds and "replace_entropy" not in holds, "what was not measured is not claimed"
    assert "+0.6000" in findings.answer and "4,000" in findings.answer
    tuned = findings.tables["Change by a stage of fine-tuning"]
    assert {row["arm"] for row in tuned} == {"narrow"}
    assert {round(row["value"], 6) for row in tuned if row["metric"] == METRICS["loss"][0]} == {0.4}
    assert list(findings.figures) == ["generations", "stages"]


def test_the_loss_of_the_evaluation_takes_precedence_over_that_of_the_run(tmp_path):
    stage = {
        "metrics": {"val/code/loss": 1.0, "eval/perplexity/builtin/docs/loss": 3.0, f"{PREFIX}/sampled/mauve": 0.5}
    }
    fake_run(tmp_path / "a", [stage], config={"seed": 0, "study": {"arm": "real", "generation": 0}})
    assert scored(read_runs(tmp_path), "builtin/docs")["loss"].tolist() == [3.0]


def test_lines_begin_with_generation_0_and_the_human_value_is_that_of_its_runs(folder):
    rows = scored(read_runs(folder), "builtin/docs")
    means = shown_means(rows, ["replace", "with_real"], 0.9)
    part = means[(means["metric"] == "loss") & (means["arm"] == "replace") & (means["size"] == 1000)]
    assert part["generation"].tolist() == [0, 1, 2]
    assert part["mean"].tolist() == pytest.approx([2.0 + 0.1 / 3, 2.2 + 0.1 / 3, 2.4 + 0.1 / 3])
    assert human(rows) == {name: pytest.approx(0.8) for name in ("sampled/distinct_2", "greedy/distinct_2")}


def test_figures_name_arms_sizes_and_the_human_text(folder):
    findings = Collapse().analyze(read_runs(folder))
    chart, stages = (make().to_dict() for make in findings.figures.values())
    assert [panel["title"] for panel in chart["concat"]] == ["loss on real text", "different 2-grams (distinct-2)"]
    assert "human text" in str(chart) and "1k parameters" in str(chart)
    assert "narrow fine-tuning, 4k parameters" in str(stages)
    assert generations_chart and stages_chart


def test_runs_that_answer_nothing_are_refused(folder, tmp_path_factory):
    runs = read_runs(folder)
    with pytest.raises(ValueError, match="no run of generation 0"):
        Collapse().analyze([run for run in runs if not run.name.startswith("real")])
    with pytest.raises(ValueError, match=r"evals=\[perplexity,degeneration\]"):
        Collapse(data="elsewhere").analyze(runs)
    only_base = Collapse().analyze([run for run in runs if run.name.startswith("real")])
    assert "not determined" in only_base.answer and list(only_base.verdicts) == []


def test_two_runs_of_an_arm_size_and_seed_are_refused_since_one_of_them_would_be_read(folder):
    runs = read_runs(folder)
    with pytest.raises(ValueError, match=r"optimizer\.lr"):
        Collapse().analyze([*runs, copied(runs[0], "twin", optimizer={"lr": 0.5})])


def test_an_arm_that_ends_early_is_compared_where_it_ends_and_named(folder):
    runs = read_runs(folder)
    ended = [run for run in runs if not run.name.startswith("replace-2-")]
    findings = Collapse().analyze(ended)
    rows = findings.tables["Change from generation 0 to 1"]
    changes = {(row["arm"], row["parameters"]): row["value"] for row in rows if row["metric"] == METRICS["loss"][0]}
    assert changes["replace", 4000] == pytest.approx(0.3) and changes["with_real", 4000] == pytest.approx(0.05)
    (warning,) = (verdict for verdict in findings.verdicts if verdict["code"] == "replace_incomplete")
    assert warning["level"] == "warn" and "generation 2 with seed 0 of 1,000 parameters" in warning["text"]


def test_a_seed_without_the_last_generation_is_named(folder):
    runs = [run for run in read_runs(folder) if run.name != "replace-2-1000-1"]
    findings = Collapse().analyze(runs)
    rows = findings.tables["Change from generation 0 to 2"]
    assert {row["n"] for row in rows if (row["arm"], row["parameters"]) == ("replace", 1000)} == {2}
    (warning,) = (verdict for verdict in findings.verdicts if verdict["code"].endswith("_incomplete"))
    assert "seed 1 of 1,000 parameters" in warning["text"] and "seed 0" not in warning["text"]
