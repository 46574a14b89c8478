"""The banner before training, against what the run then records."""

import json
from types import SimpleNamespace

import pytest

from kleiber.launch.main import main
from kleiber.runs import banner
from kleiber.training.trainer import Local


def labelled(text: str) -> dict[str, str]:
    """The lines of the banner by their labels."""
    lines = [line for line in text.splitlines() if line.startswith("  ") and line.strip()]
    return {line[2:].partition("  ")[0]: line[2:].partition("  ")[2].strip() for line in lines}


def test_the_banner_names_what_the_run_records(launch, capsys):
    folder = launch("model=moe", "trainer.max_steps=3", "callbacks.samples=null")
    err = capsys.readouterr().err
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    lines = labelled(err)
    assert f"{stage['params']['total']:,} parameters, {stage['params']['active']:,} active" in lines["model"]
    assert f"{stage['data']['tokens']:,} training tokens" in lines["data"] and "bytes" in lines["data"]
    assert f"3 steps of {stage['batch_tokens']:,} tokens" in lines["training"]
    assert f"{stage['tokens']:,} tokens" in lines["training"]
    assert lines["validation"].startswith("after the last step, on ")
    assert lines["device"].startswith("CPU with 1 thread, fp32")
    assert lines["folder"] == str(folder) and "metrics.csv" in lines["logger"]
    assert "model=moe trainer.max_steps=3" in lines["resume"]


@pytest.mark.slow
def test_the_banner_lists_every_stage(launch, capsys):
    launch("stages=trunk_and_cooldowns", "stages.branches=[4K,8K]", "callbacks.samples=null")
    lines = labelled(capsys.readouterr().err)
    assert "of trunk" in lines["stage 4K"] and {"stage trunk", "stage 8K"} <= lines.keys()


@pytest.mark.slow
def test_the_banner_names_the_stages_whose_validations_differ(launch, capsys):
    chain = "stages.chain={one:{budget:{steps:12}},two:{budget:{steps:4}}}"
    launch("stages=chain", chain, "eval.tokens=64", "callbacks.samples=null")
    lines = labelled(capsys.readouterr().err)
    assert lines["validation of one"].startswith("every 3 steps, on ") and "validation" not in lines
    assert lines["validation of two"].startswith("every step, on ")


@pytest.mark.slow
def test_the_command_that_the_banner_prints_resumes_the_run(launch, capsys, monkeypatch):
    import shlex

    folder = launch("model=gpt", "trainer.max_steps=2", "callbacks.samples=null")
    repeat = shlex.split(labelled(capsys.readouterr().err)["resume"])
    assert main(repeat[repeat.index("train") + 1 :]) == 0
    assert f"{folder} is finished already" in capsys.readouterr().out


def texts(text: str, label: str) -> list[str]:
    """The lines of a banner or a dry run with a label."""
    lines = [line.strip().partition("  ") for line in text.splitlines()]
    return [rest.strip() for name, _, rest in lines if name == label]


@pytest.mark.slow
def test_what_was_read_is_told_and_shared_documents_and_repetition_are_warned_of(launch, capsys, tmp_path):
    """FAULTS 97, 99."""
    home = tmp_path / "mine"
    home.mkdir()
    for name in ("train", "validation"):
        rows = [{"text": f"document {i} of a few"} for i in range(20)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "logo.png").write_bytes(bytes(9))
    data = ["data=text", f"data.path={home}", "data.splits=files"]
    folder = launch(*data, "trainer.max_steps=60", "callbacks.samples=null")
    banner, log = capsys.readouterr().err, (folder / "log.txt").read_text()
    for text in (banner, log):
        (files,) = texts(text, "files")
        assert "2 files" in files and "40 documents" in files and "1 binary (logo.png)" in files
        assert "train: train.jsonl; validation: validation.jsonl" in files
        (overlap,) = texts(text, "overlap")
        assert "20 of 20 validation documents (100%)" in overlap
        shared, repeated = texts(text, "warning")
        assert "data.path" in shared and "the default budget is" in repeated and "set budget.epochs=4" in repeated


@pytest.mark.slow
def test_a_budget_that_repeats_the_data_is_named_with_its_value(launch, capsys, tmp_path):
    path = tmp_path / "few.txt"
    path.write_text("a few words of text " * 40)
    options = ["data=text", f"data.path={path}", "trainer.max_steps=100", "callbacks.samples=null"]
    launch(*options, "budget.tokens=10K")
    (warning,) = texts(capsys.readouterr().err, "warning")
    assert warning.startswith("budget.tokens=10K is ") and " set budget.tokens=" in warning
    launch(*options, f"budget.tokens={warning.partition('set budget.tokens=')[2].partition(',')[0]}")
    assert texts(capsys.readouterr().err, "warning") == []


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "stop", "is_trial"), [(None, 100, False), (100, 100, False), (10, 10, True)])
def test_a_trial_that_keeps_the_schedule_of_its_budget_is_told(limit, stop, is_trial):
    text = banner.of_a_trial(SimpleNamespace(max_steps=limit, stop_step=stop, steps=100))
    assert ("budget.steps=10" in text) == is_trial == bool(text)


@pytest.mark.parametrize(
    ("precision", "amx", "bf16", "advised"),
    [(32, True, 1.0, "trainer.precision=bf16"), (32, False, 1.0, None), (64, True, 1.0, None),
     ("bf16", True, 4.0, None), ("bf16", False, 0.5, "trainer.precision=32")],
)  # fmt: skip
def test_the_faster_precision_of_the_processor_is_named(monkeypatch, precision, amx, bf16, advised):
    monkeypatch.setattr(banner, "has_amx", lambda: amx)
    monkeypatch.setattr(banner, "peak_flops", lambda _, of_bf16: bf16 if of_bf16 else 1.0)
    lines = banner.precision_advice(Local(precision=precision))
    assert [advised in line for line in lines] == ([] if advised is None else [True])


@pytest.mark.parametrize(("model", "warned"), [("gpt", 1), ("bert", 0)])
def test_hidden_tokens_of_a_causal_model_are_warned_of(launch, capsys, model, warned):
    launch(f"model={model}", "objective=mlm", "trainer.max_steps=1", "callbacks.samples=null")
    lines = [line for line in capsys.readouterr().err.splitlines() if "objective=mlm on a causal model" in line]
    assert len(lines) == warned
