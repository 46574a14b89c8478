"""Scores of tasks by start point, and the rate that is tuned for each."""

import pytest
import yaml

from kleiber.records.catalog import read_runs
from kleiber_topics.transfer.transfer import score_rows, tuned_rates

from .transfer_runs import paired_runs, write


@pytest.mark.parametrize("score", ["accuracy", "pearson", "micro_f1"])
def test_a_task_that_names_no_score_is_read_by_that_of_its_kind(tmp_path, score):
    lines = ["study.kind=mlm", "study.start=docs/1M", "study.task=toy", "study.share=1", "seed=0"]
    others = {} if score == "pearson" else {"accuracy": 0.7}
    write(tmp_path, lines, loss=1.0, **(others | {score: 0.5}))
    (row,) = score_rows(read_runs(tmp_path)).to_dict("records")
    assert (row["metric"], row["score"]) == (score, 0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return paired_runs(tmp_path_factory.mktemp("runs"))


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
