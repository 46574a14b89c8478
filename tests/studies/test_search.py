"""The study of a search: held-out seeds decide, the regret has its two parts, and halving cannot fool it."""

import math

import numpy as np
import pytest

from kleiber.records.catalog import read_runs
from kleiber.studies.designs.search import Search as Design
from kleiber.studies.search import Search
from tests.studies.search_runs import KEYS, planted_loss, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A search of 24 trials with halving; only the rate matters."""
    home = tmp_path_factory.mktemp("search")
    train(home, Design(KEYS, trials=24, tokens=["100K", "400K"], finalists=3, seeds=3))
    return home


def codes(findings) -> dict[str, str]:
    return {caveat["code"]: caveat["text"] for caveat in findings.caveats}


def test_the_best_trial_is_that_of_the_held_out_seeds_and_the_search_is_tuned(folder):
    found = Search(tolerance=0.05).analyze(read_runs(folder))
    best = found.tables["Finalists on held-out seeds"][0]
    assert abs(math.log(float(best["optimizer.lr"]) / 0.01)) < 0.3 and best["lo"] < best["loss"] < best["hi"]
    values = {"optimizer.lr": best["optimizer.lr"]}
    assert best["loss"] == pytest.approx(np.mean([planted_loss(values, seed, 4e5) for seed in (1, 2, 3)]))
    assert set(codes(found)) == {"optimism"}, "neither untuned nor at an edge, nor are early losses a poor guide"
    assert found.answer.startswith("The best of 24 trials is optimizer.lr") and "is tuned" in found.answer
    assert "untuned" in codes(Search(tolerance=1e-6).analyze(read_runs(folder)))


def test_only_the_key_that_matters_is_important(folder):
    shares = {
        row["key"]: row["share of variance"]
        for row in Search().analyze(read_runs(folder)).tables["Importance of each key"]
    }
    assert shares["optimizer.lr"] > 0.8 and shares["batch.tokens"] < 0.3 and shares["optimizer.weight_decay"] < 0.3


def test_an_early_lead_that_does_not_last_is_said(tmp_path):
    def crossing(values, seed, tokens):
        rate = math.log(float(values["optimizer.lr"]))
        return 2 + (0.1 if tokens < 2e5 else -0.1) * rate

    train(tmp_path, Design(KEYS, trials=16, tokens=["100K", "400K"], finalists=2, seeds=2, controls=2), crossing)
    found = Search().analyze(read_runs(tmp_path))
    (text,) = [caveat["text"] for caveat in found.caveats if caveat["code"] == "halving"]
    assert "is -1.00 over 8 trials: the early losses are a poor guide" in text
    assert "untuned" in codes(found)


def test_a_finalist_that_diverged_is_named_and_the_others_decide(tmp_path):
    def diverging(values, seed, tokens):
        return math.inf if (values["study.arm"], seed) == ("trial10", 2) else planted_loss(values, seed, tokens)

    train(tmp_path, Design(KEYS, trials=16, finalists=4, seeds=3), diverging)
    found = Search(tolerance=0.5).analyze(read_runs(tmp_path))
    rows = found.tables["Finalists on held-out seeds"]
    assert codes(found)["diverged"].startswith("trial10 ") and len(rows) == 3
    assert "untuned" not in codes(found) and all(math.isfinite(row["lo"]) for row in rows)


def test_a_search_whose_trials_all_diverged_is_reported(tmp_path):
    train(tmp_path, Design(KEYS, trials=8), lambda *_: math.nan)
    found = Search().analyze(read_runs(tmp_path))
    assert "not_tested" in codes(found)
    assert [row["share of variance"] for row in found.tables["Importance of each key"]] == [0, 0, 0]


def test_too_few_trials_have_a_best_one_but_no_regret(tmp_path):
    train(tmp_path, Design(KEYS, trials=3, finalists=2, seeds=2))
    found = Search().analyze(read_runs(tmp_path))
    assert "from 3 trials" in codes(found)["not_tested"] and found.answer.startswith("The best of 3 trials is")
    assert len(found.tables["Finalists on held-out seeds"]) == 2


def test_a_search_that_has_not_ended_decides_nothing(folder):
    runs = [run for run in read_runs(folder) if run.config["seed"] == 0]
    found = Search().analyze(runs)
    assert "not_tested" in codes(found) and found.tables["Finalists on held-out seeds"] == []
    with pytest.raises(ValueError, match="no finished trial"):
        Search().analyze([])


def test_trials_that_tpe_proposed_do_not_show_what_more_would_gain(tmp_path):
    train(tmp_path, Design(KEYS, trials=8, tokens=["100K"], finalists=2, seeds=3, sampler="tpe"))
    found = Search(tolerance=0.5).analyze(read_runs(tmp_path))
    assert "not_tested" in codes(found) and "untuned" not in codes(found)
    assert found.answer.endswith("whether the search is tuned to 0.5 nats is not determined.")
    assert Search(tolerance=0.01).is_tuned({"selection": 0.02, "halving": 0.0, "search": math.inf}) is False
