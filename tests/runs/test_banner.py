"""The banner before training, against what the run then records."""

import json

from kleiber.launch.main import main


def labelled(text: str) -> dict[str, str]:
    """The lines of the banner by their labels."""
    lines = [line for line in text.splitlines() if line.startswith("  ") and line.strip()]
    return {line[2:].partition("  ")[0]: line[2:].partition("  ")[2].strip() for line in lines}


def test_the_banner_names_what_the_run_records(launch, capsys):
    folder = launch("model=moe", "trainer.max_steps=3", "callbacks.samples=null")
    err = capsys.readouterr().err
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    banner = labelled(err)
    assert f"{stage['params']['total']:,} parameters, {stage['params']['active']:,} active" in banner["model"]
    assert f"{stage['data']['tokens']:,} training tokens" in banner["data"] and "bytes" in banner["data"]
    assert f"3 steps of {stage['batch_tokens']:,} tokens" in banner["training"]
    assert f"{stage['tokens']:,} tokens" in banner["training"]
    assert banner["validation"].startswith("after the last step, on ")
    assert banner["device"].startswith("CPU with 1 thread, fp32")
    assert banner["folder"] == str(folder) and "metrics.csv" in banner["logger"]
    assert "model=moe trainer.max_steps=3" in banner["resume"]


def test_the_banner_lists_every_stage(launch, capsys):
    launch("stages=trunk_and_cooldowns", "stages.branches=[4K,8K]", "callbacks.samples=null")
    banner = labelled(capsys.readouterr().err)
    assert "of trunk" in banner["stage 4K"] and {"stage trunk", "stage 8K"} <= banner.keys()


def test_the_banner_names_the_stages_whose_validations_differ(launch, capsys):
    chain = "stages.chain={one:{budget:{steps:12}},two:{budget:{steps:4}}}"
    launch("stages=chain", chain, "eval.tokens=64", "callbacks.samples=null")
    banner = labelled(capsys.readouterr().err)
    assert banner["validation of one"].startswith("every 3 steps, on ") and "validation" not in banner
    assert banner["validation of two"].startswith("every step, on ")


def test_the_command_that_the_banner_prints_resumes_the_run(launch, capsys, monkeypatch):
    import shlex

    folder = launch("model=gpt", "trainer.max_steps=2", "callbacks.samples=null")
    repeat = shlex.split(labelled(capsys.readouterr().err)["resume"])
    assert main(repeat[repeat.index("train") + 1 :]) == 0
    assert f"{folder} is finished already" in capsys.readouterr().out
