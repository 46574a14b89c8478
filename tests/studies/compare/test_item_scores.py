"""Models compared by their scores of each item: files of lm-eval and lighteval, and what does not pair."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kleiber.launch.cli import main

LEVEL = 0.9


def write_samples(folder, task: str, scores: list[float], **changes: object) -> None:
    """A file of scores by item as lm-eval's --log_samples writes it."""
    folder.mkdir(parents=True)
    rows = [
        {"doc_id": item, "doc": {"question": item}, "filter": "none", "metrics": ["acc"], "doc_hash": f"h{item}",
         "acc": score, **changes}
        for item, score in enumerate(scores)
    ]  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{task}_2026-01-01T00-00-00.000000.jsonl").write_text(lines)


def test_results_of_lm_eval_are_paired_by_item(tmp_path):
    noise = np.random.default_rng(1)
    plain, new = (noise.integers(0, 2, 200).astype(float) for _ in range(2))
    write_samples(tmp_path / "plain" / "gpt", "piqa", [*plain])
    write_samples(tmp_path / "new" / "gpt", "piqa", [*new])
    folders, out = [str(tmp_path / name) for name in ("plain", "new")], tmp_path / "out.json"
    code = main(["compare", *folders, "--task", "piqa", "--better", "higher", "--json", str(out)])
    test = stats.ttest_rel(new, plain).confidence_interval(LEVEL)
    (claim,) = json.loads(out.read_text())["claims"]
    assert [claim["lo"], claim["hi"]] == pytest.approx([test.low, test.high], abs=1e-9)
    assert (code, claim["n"], claim["measure"], "items" in claim["method"]) == (3, 200, "acc", True)


def test_results_of_lighteval_are_paired_by_item(tmp_path):
    noise = np.random.default_rng(2)
    scores = {name: noise.random(50) + gap for name, gap in (("plain", 0.0), ("new", 0.5))}
    for name, each in scores.items():
        (tmp_path / name).mkdir()
        rows = pd.DataFrame(
            {"metric": [{"f1": value} for value in each], "doc": [{"query": str(at)} for at in range(50)]}
        )
        rows.to_parquet(tmp_path / name / "details_squad_2026-01-01T00-00-00.000000.parquet")
    folders, out = [str(tmp_path / name) for name in scores], tmp_path / "out.json"
    assert main(["compare", *folders, "--task", "squad", "--better", "higher", "--json", str(out)]) == 0
    test = stats.ttest_rel(scores["new"], scores["plain"]).confidence_interval(LEVEL)
    (claim,) = json.loads(out.read_text())["claims"]
    assert [claim["lo"], claim["hi"]] == pytest.approx([test.low, test.high], abs=1e-9)


def write_run(folder, items: dict[str, object]) -> None:
    """A run that was evaluated by items."""
    (folder / "evals").mkdir(parents=True)
    (folder / "config.yaml").touch()
    scores = {"pairs": {"chrf": {"value": 0.0, "better": "higher"}}}
    (folder / "evals/generation.json").write_text(json.dumps({"scores": scores, "items": {"pairs": items}}))


def test_runs_are_paired_by_the_items_of_an_evaluation(tmp_path):
    """Equal items too, in whatever order other items stand; which values are better stands in the run."""
    noise = np.random.default_rng(4)
    contents = [f"item {n // 2}" for n in range(60)]
    plain = noise.random(60)
    new = plain + 0.1 + 0.01 * noise.random(60)
    turned = new.reshape(30, 2)[::-1].ravel()[:50].tolist()
    write_run(tmp_path / "plain", {"contents": contents, "values": {"chrf": plain.tolist()}})
    write_run(tmp_path / "new", {"contents": contents[::-1][:50], "values": {"chrf": turned}})
    out = tmp_path / "out.json"
    arguments = ["compare", str(tmp_path / "plain"), str(tmp_path / "new"), "--task", "generation/pairs"]
    assert main([*arguments, "--json", str(out)]) == 0
    (claim,) = json.loads(out.read_text())["claims"]
    test = stats.ttest_rel(new[10:], plain[10:]).confidence_interval(LEVEL)
    assert [claim["lo"], claim["hi"]] == pytest.approx([test.low, test.high], abs=1e-9) and claim["n"] == 50
    assert main([*arguments, "--better", "lower"]) == 5
    assert main([*arguments[:-1], "generation/other"]) == 2


@pytest.mark.parametrize(
    "changes", [{"values": {"chrf": [1.0]}}, {"values": [1.0, 2.0]}, {"contents": None}, {"values": {"chrf": ["x", 1]}}]
)
def test_items_of_a_run_that_are_damaged_are_refused(tmp_path, changes):
    for name in ("plain", "new"):
        write_run(tmp_path / name, {"contents": ["a", "b"], "values": {"chrf": [1.0, 2.0]}, **changes})
    folders = [str(tmp_path / name) for name in ("plain", "new")]
    assert main(["compare", *folders, "--task", "generation/pairs"]) == 2


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"doc_hash": "other"}, []),
        ({"metrics": ["f1"], "f1": 1.0}, []),
        ({}, ["--task", "hellaswag"]),
        ({}, ["--measure", "f1"]),
        ({}, ["--equal", "tokens"]),
    ],
    ids=["other items", "no shared metric", "other task", "other metric", "equal tokens"],
)
def test_results_that_do_not_pair_are_refused(tmp_path, changes, options):
    write_samples(tmp_path / "plain", "piqa", [0.0, 1.0])
    write_samples(tmp_path / "new", "piqa", [1.0, 1.0], **changes)
    assert main(["compare", str(tmp_path / "plain"), str(tmp_path / "new"), "--task", "piqa", *options]) == 2
