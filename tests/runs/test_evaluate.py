"""`kleiber eval`: opens a run with its final weights, runs evaluations by name, and writes their results."""

import json
import re
import shutil

import pytest
from small_run import REPOSITORY, TINY

from kleiber.launch.cli import main
from kleiber.runs.evaluate import parse_names, result_lines

RUN = [
    "model=moe",
    "model.width=32",
    "model.num_heads=2",
    "callbacks.checkpoints.every=5",
    "callbacks.checkpoints.keep=3",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from kleiber.launch.main import main as train

    root = tmp_path_factory.mktemp("assess")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIBER_CACHE", str(tmp_path_factory.getbasetemp() / "token-cache"))
        assert train([*TINY, *RUN, f"root={root}", "eval.tokens=null"]) == 0
    return next(root.glob("*/*"))


@pytest.mark.slow
def test_perplexity_equals_the_last_scores_of_the_run(run, cache_dir, tmp_path, capsys):
    out = tmp_path / "all.json"
    assert main(["eval", str(run), "--evals", "perplexity", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["schema"] == "kleiber.eval/1"
    ended = json.loads((run / "summary.json").read_text())["stages"][-1]["metrics"]
    scores = record["evals"]["perplexity"]["tiny"]
    assert scores["loss"]["value"] == pytest.approx(ended["val/tiny/loss"], abs=1e-5)
    assert scores["bits_per_byte"]["value"] == pytest.approx(ended["val/tiny/bits_per_byte"], abs=1e-5)
    assert json.loads((run / "evals/perplexity.json").read_text())["scores"] == record["evals"]["perplexity"]
    assert "perplexity/tiny, 90% intervals\n  loss " in capsys.readouterr().out
    ended = json.loads((run / "summary.json").read_text())["stages"][-1]["metrics"]
    assert ended["eval/perplexity/tiny/loss"] == scores["loss"]["value"]


@pytest.mark.slow
def test_routing_reads_earlier_checkpoints_and_draws_figures(run, cache_dir, capsys):
    assert main(["eval", str(run), "--evals", "routing", "--tokens", "512"]) == 0
    results = json.loads((run / "evals/routing.json").read_text())["details"]
    assert results["settled"]["steps"] == [10, 15] and results["tokens"] == 512
    names = {path.stem for path in (run / "evals/figures").glob("*.png")}
    assert {"load", "removal", "sensitivity", "saturation", "load_over_time", "specialization", "similarity"} <= names
    table = capsys.readouterr().out
    assert table.startswith("routing/all,") and re.search(r"^  sensitivity/noise/0\.01/flips +\d", table, re.M)


@pytest.mark.slow
def test_wrong_options_are_refused_by_name(run, cache_dir, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(run / "config.yaml", empty)
    for arguments, value in (
        ([str(run), "--evals", "perplexitie"], "'perplexity'"), ([str(run), "--evals", ","], "--evals ','"),
        ([str(run), "--evals", "perplexity", "--tasks", "arc"], "--tasks arc"),
        ([str(run), "--evals", "perplexity", "--task-files", "x"], "--task-files x"),
        ([str(run), "--evals", "perplexity", "x"], "x must be"),
        ([str(run), "--evals", "perplexity", "evals.perplexity.stri=1"], "evals.perplexity.stri"),
        ([str(run), "--evals", "perplexity", "--data", "x.jsonl"], "--data x.jsonl"),
        ([str(run), "--evals", "choice"], "--evals choice needs a table"),
        ([str(run), "--evals", "perplexity", "--report", "no/x.html"], "--report no/x.html"),
        ([str(empty), "--evals", "perplexity"], f"{empty} "),
        ([str(tmp_path / "x"), "--evals", "routing"], f"{tmp_path / 'x'} "),
        ([str(run), "--evals", "routing", "--stage", "trunk"], "'trunk'"),
    ):  # fmt: skip
        assert main(["eval", *arguments]) == 2
        assert value in capsys.readouterr().err


def test_names_of_evaluations_are_split_at_commas():
    assert parse_names("routing, perplexity") == ["routing", "perplexity"]


@pytest.mark.slow
def test_a_hugging_face_folder_is_evaluated_whatever_its_name(shared, cache_dir, tmp_path, capsys):
    source, odd = shared / "data" / "models" / "stories260K", tmp_path / "my model (1), [q]=a'b"
    shutil.copytree(source, odd)
    text = REPOSITORY / "tests/data/tiny.txt"
    arguments = ["--evals", "perplexity", "--tokens", "512", "--data", "data=text", "--data", f"data.path={text}"]
    (tmp_path / "perplexity.json").write_text("mine")
    for folder in (source, odd):
        assert main(["eval", str(folder), *arguments, "--json", str(tmp_path / f"{len(str(folder))}.json")]) == 0
    results, other = (json.loads((tmp_path / f"{len(str(f))}.json").read_text())["evals"] for f in (source, odd))
    assert results == other and (tmp_path / "perplexity.json").read_text() == "mine"
    capsys.readouterr()
    for options in (["--stage", "main"], ["--json", str(tmp_path / "no/x.json")]):
        assert main(["eval", str(source), *arguments, *options]) == 2
        assert " ".join(options) in capsys.readouterr().err


@pytest.mark.slow
def test_scores_on_other_data_are_kept_when_the_training_command_is_repeated(cache_dir, tmp_path):
    from kleiber.launch.main import main as train

    command = [*TINY, f"root={tmp_path / 'runs'}", "evals=[perplexity]", "eval.tokens=512"]
    assert train(command) == 0
    run = next((tmp_path / "runs").glob("*/*"))
    other = tmp_path / "other.txt"
    other.write_text((REPOSITORY / "tests/data/tiny.txt").read_text()[:9000])

    def metrics():
        return json.loads((run / "summary.json").read_text())["stages"][-1]["metrics"]

    trained, evaluate = metrics(), ["eval", str(run), "--evals", "perplexity", "evals.perplexity.stride=16"]
    assert main([*evaluate, "--data", str(other)]) == 0
    evaluated = metrics()
    assert {key for key in evaluated if key not in trained} >= {"eval/perplexity/other/loss"}
    summary = (run / "summary.json").stat().st_mtime_ns
    assert train(command) == 0 and metrics() == evaluated
    assert (run / "summary.json").stat().st_mtime_ns == summary, "nothing was evaluated again"
    assert main(evaluate) == 0
    assert metrics()["eval/perplexity/tiny/loss"] != trained["eval/perplexity/tiny/loss"]
    assert train(command) == 0
    assert metrics() == pytest.approx(evaluated, rel=1e-5), "the settings of the run replaced those of `kleiber eval`"


def test_scores_are_printed_as_a_table_with_intervals_and_units():
    def score(value, lo=None, hi=None, n=None, unit=None):
        return {"value": value, "lo": lo, "hi": hi, "n": n, "unit": unit}

    metrics = {"loss": score(2.123456, 2.0, 2.25, 1024, "nats per token"), "accuracy": score(0.5)}
    first, loss, accuracy = result_lines({"evals": {"perplexity": {"docs": metrics}}})
    assert "perplexity/docs" in first and "90%" in first
    assert loss.split() == ["loss", "2.123", "[2,", "2.25]", "nats", "per", "token,", "n=1,024"]
    assert accuracy.split() == ["accuracy", "0.5"] and accuracy.index("0.5") + 3 == loss.index("2.123") + 5
