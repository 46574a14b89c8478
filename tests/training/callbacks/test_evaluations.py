"""Evaluations during training: when they run, where their scores go, and that the training is the same without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from kleiber.data.order import Reading
from kleiber.data.tokenizers import Bytes
from kleiber.evals.evaluation import Subject
from kleiber.objectives.clm import CLM
from kleiber.records.summary import StageRecord
from kleiber.training.callbacks.evaluations import RunEvaluations

EVERY = ["evals=[perplexity]", "eval.every_tokens=4K", "trainer.max_steps=20"]
KEY = "eval/perplexity/tiny/loss"


def stage_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())["stages"][-1]


def weights(run: Path) -> dict:
    return load_file(run / stage_of(run)["checkpoint"] / "model.safetensors")


@pytest.mark.slow
def test_scores_are_columns_and_rows_and_the_training_is_the_same(launch) -> None:
    plain, watched = launch("trainer.max_steps=20", root="plain"), launch(*EVERY, root="watched")
    assert plain.name == watched.name  # evaluations are no part of what a run is
    stage = stage_of(watched)
    assert [row["step"] for row in stage["curve"] if KEY in row] == [8, 16, 20]
    assert stage["metrics"][KEY] == pytest.approx(stage["metrics"]["val/tiny/loss"], abs=1e-5)
    assert json.loads((watched / "evals/perplexity.json").read_text())["scores"]["tiny"]["loss"]["n"] > 0
    first, second = weights(plain), weights(watched)
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)
    logged = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    assert sum(KEY in row for row in logged) == 3


def test_an_evaluation_learns_how_far_the_text_was_read(tmp_path: Path) -> None:
    class Reader:
        def measure_or_warn(self, subject: Subject) -> None:
            self.reading = subject.reading

    reader, record = Reader(), StageRecord("main", rollbacks=[{"step": 9, "to": 4}])
    subject = Subject(None, Bytes(), CLM(), CLM(), [], reading=Reading(0, 8, 0))  # type: ignore[arg-type]
    RunEvaluations([], subject, record, tmp_path, {}, 1).measure(reader, 20)  # type: ignore[arg-type]
    assert reader.reading == Reading(0, 8, 25)


@pytest.mark.slow
def test_a_finished_run_is_evaluated_when_its_command_asks_for_it_later(launch, capsys, tmp_path) -> None:
    run = launch()
    trained = weights(run)
    assert KEY not in stage_of(run)["metrics"]
    assert launch("evals=[perplexity]") == run
    score = stage_of(run)["metrics"][KEY]
    assert all((value == trained[name]).all() for name, value in weights(run).items())
    capsys.readouterr()
    launch("evals=[perplexity]")
    assert "finished already" in capsys.readouterr().out
    text = tmp_path / "other.txt"
    text.write_text("another text\n" * 400)
    assert launch("evals=[perplexity]", f"evals.perplexity.data=[{text}]", "callbacks=ema") == run
    output = capsys.readouterr()
    assert "finished already" not in output.out and "callbacks.ema no longer has an effect" in output.err
    metrics = stage_of(run)["metrics"]
    assert metrics[KEY] == score and "eval/perplexity/other/loss" in metrics


@pytest.mark.slow
def test_a_chain_is_evaluated_before_it_and_after_each_stage(launch) -> None:
    start, budget = launch(), "budget:{steps:4}"
    chain = ["stages=chain", f"stages.chain={{one:{{{budget}}},two:{{{budget}}},three:{{{budget}}}}}"]
    run = launch("init=checkpoint", f"init.path={start}", *chain, "evals=[perplexity]", root="second")
    stages = json.loads((run / "summary.json").read_text())["stages"]
    scores = [stages[0]["start_metrics"][KEY], *(stage["metrics"][KEY] for stage in stages)]
    losses = [stages[0]["start_metrics"]["val/tiny/loss"], *(stage["metrics"]["val/tiny/loss"] for stage in stages)]
    assert [stage["name"] for stage in stages] == ["one", "two", "three"]
    assert scores == pytest.approx(losses, abs=1e-5) and len(set(scores)) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evals=[perplexitie]", "'perplexity'"),
        ("evals=[routing]", "--evals routing"),
        ("evals=[choice]", "--evals choice"),
        ("evals.perplexity.data=[nothing.jsonl]", "evals.perplexity.data nothing.jsonl"),
        ("evals.perplexity.dta=[x]", "evals.perplexity.dta"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(launch, capsys, override: str, message: str) -> None:
    chosen = [] if override.startswith("evals=") else ["evals=[perplexity]"]
    root = launch(*chosen, override, code=2)
    assert message in capsys.readouterr().err and not list(root.glob("*/*"))
