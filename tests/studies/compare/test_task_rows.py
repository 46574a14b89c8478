"""What pre-training gives: planned in rounds, tuned, paired with the same model from nothing, counted in labels."""

import math

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber.studies.compare.task_rows import equivalent_labels, score_rows, tuned_rates

from ..transfer_runs import write


@pytest.mark.parametrize("score", ["accuracy", "pearson", "micro_f1"])
def test_a_task_that_names_no_score_is_read_by_that_of_its_kind(tmp_path, score):
    lines = ["study.kind=mlm", "study.start=docs/1M", "study.task=toy", "study.share=1", "seed=0"]
    others = {} if score == "pearson" else {"accuracy": 0.7}
    write(tmp_path, lines, loss=1.0, **(others | {score: 0.5}))
    (row,) = score_rows(read_runs(tmp_path)).to_dict("records")
    assert (row["metric"], row["score"]) == (score, 0.5)


def test_labels_needed_are_read_off_the_curve_from_nothing():
    curve = {10.0: 0.5, 100.0: 0.7, 1000.0: 0.6, 10000.0: 0.9}
    assert equivalent_labels(curve, 0.6) == pytest.approx(10**1.5) and equivalent_labels(curve, 0.7) == pytest.approx(
        100
    )
    assert equivalent_labels(curve, 0.8) == pytest.approx(10**3.5), "its running maximum where it falls"
    assert (
        equivalent_labels(curve, 0.95) == math.inf
        and equivalent_labels(curve, 0.4) == 0.0
        and equivalent_labels(curve, 0.5) == 10.0
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """From nothing .5 + .1 per decade of labels and of the seed; a base is worth a decade, but never above .75."""
    home = tmp_path_factory.mktemp("runs")
    for seed in range(3):
        for share in (0.01, 0.1, 1):
            lines = [
                f"seed={seed}",
                "study.task=toy",
                "study.kind=mlm",
                f"study.share={share:g}",
                f"data.share={share}",
            ]
            score = 0.7 + 0.1 * math.log10(share) + 0.02 * seed
            write(home, [*lines, "study.start=scratch", "optimizer.lr=0.005"], accuracy=score, loss=0.5)
            write(home, [*lines, "study.start=docs/1M", "optimizer.lr=0.01"], accuracy=score + 0.1, loss=0.4)
            write(home, [*lines, "study.start=docs/2M", "optimizer.lr=0.01"], accuracy=score - 0.01 * seed, loss=0.4)
        lines = [f"seed={seed}", "study.task=toy", "study.kind=hf", "study.start=docs/1M", "study.share=1"]
        write(home, [*lines, "optimizer.lr=0.001"], accuracy=0.79 + 0.02 * seed, loss=0.4)
    other = ["seed=0", "study.task=toy", "study.kind=mlm", "study.start=scratch", "study.share=1", "optimizer.lr=0.002"]
    write(home, other, accuracy=0.99, loss=0.1)  # tried at one seed, and no part of the comparison
    return read_runs(home)


def test_of_a_score_that_falls_the_lowest_is_the_best(tmp_path):
    lines = ["study.kind=mlm", "study.start=docs/1M", "study.task=toy", "study.share=1", "seed=0"]
    for lr, rmse in ((0.01, 0.4), (0.02, 0.9)):
        home = write(tmp_path, [*lines, f"optimizer.lr={lr}"], loss=1.0, rmse=rmse, pearson=0.5)
        config = yaml.safe_load((home / "config.yaml").read_text())
        (home / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"metric": "rmse"}}))
    runs = read_runs(tmp_path)
    rows = score_rows(runs).to_dict("records")
    assert sorted((row["metric"], row["score"]) for row in rows) == [("-rmse", -0.9), ("-rmse", -0.4)]
    assert list(tuned_rates(runs, 1.0).values()) == [0.01]
