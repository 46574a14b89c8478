"""kleiber compare: arms by any key of the config, the decision in a file, and its exit code."""

import json
from pathlib import Path

import pytest
import yaml
from studies.arm_runs import write

from kleiber.launch.cli import main

STUDY = {"_target_": "kleiber.studies.Compare"}


@pytest.fixture
def folders(tmp_path):
    write(tmp_path / "a", STUDY, "plain", 3.0)
    write(tmp_path / "b", STUDY, "changed", 2.9)
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.slow
@pytest.mark.parametrize(("order", "code"), [(1, 0), (-1, 5)])
def test_folders_are_compared_in_the_order_in_which_they_are_named(folders, tmp_path, capsys, order, code):
    out = tmp_path / "decision.json"
    assert main(["compare", *folders[::order], "--json", str(out)]) == code
    written = json.loads(out.read_text())
    assert written["schema"] == "kleiber.findings/2" and written["decision"] in capsys.readouterr().out
    assert abs(written["estimates"][0]["value"]) == pytest.approx(0.1)


@pytest.mark.slow
def test_the_values_of_any_key_are_arms(folders, capsys):
    assert main(["compare", *folders, "--arm", "optimizer.lr"]) == 3  # one rate an arm: not tuned
    out = capsys.readouterr().out
    assert "lr=0.01 " in out and "--sort loss" in out


@pytest.mark.slow
def test_runs_that_differ_in_rate_and_seed_alone_are_said_to(tmp_path, capsys):
    write(tmp_path / "a", STUDY, None, 3.0)
    write(tmp_path / "b", STUDY, None, 2.9)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    error = capsys.readouterr().err
    assert "seed" in error and "no key" not in error


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--arm", "model.depth"], ["--arm", "nope"], ["--equal", "x"], ["--measure", "val/x/accuracy"],
        ["--level", "1.0"],
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_and_named(folders, capsys, options):
    assert main(["compare", *folders, *options]) == 2
    assert options[1] in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["--equal", "token"], ["--equal token", "'tokens'"]),
        (["--level", "90"], ["--level 90", "0.9"]),
        (["--arm", "nope"], ["--arm nope", "model.depth"]),
        ([], ["--arm KEY", "model.depth"]),
        (["--arm", "model.width"], ["--arm model.width", "have the value", "model.depth"]),
    ],
)
def test_the_error_names_the_option_and_what_to_write(folders, tmp_path, capsys, options, values):
    for name, depth in (("a", 2), ("b", 3)):
        set_in_runs(tmp_path / name, "model", depth=depth)
        set_in_runs(tmp_path / name, "study", arm=None)
    assert main(["compare", *folders, *options]) == 2
    message = capsys.readouterr().err
    assert all(value in message for value in values) and "study." not in message


def test_a_folder_without_runs_is_refused(tmp_path, capsys):
    assert main(["compare", str(tmp_path)]) == 2
    assert "no run" in capsys.readouterr().err


def set_in_runs(folder, node, **values):
    for path in folder.glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config[node] = {**(config.get(node) or {}), **values}
        path.write_text(yaml.safe_dump(config))


@pytest.mark.slow
def test_arms_that_differ_in_other_keys_have_these_named_and_are_refused_on_other_texts(folders, tmp_path, capsys):
    for name, depth in (("a", 2), ("b", 3)):
        set_in_runs(tmp_path / name, "model", depth=depth, mlp={"hidden": 64 * depth})
    command = ["compare", *folders, "--arm", "model.depth"]
    assert main(command) == 0
    assert "note: the arms also differ in model.mlp.hidden," in capsys.readouterr().out
    set_in_runs(tmp_path / "b", "data", domain="code")
    assert main(command) == 2
    assert "data.domain" in capsys.readouterr().err
    assert main(["compare", *folders, "--arm", "data.domain"]) == 0


@pytest.mark.slow
def test_an_arm_whose_runs_differ_in_another_key_is_refused_with_the_key(folders, tmp_path, capsys):
    """One of the arms would be two, and the difference that of what they are mixed with."""
    for number, config in enumerate(sorted((tmp_path / "a").glob("*/config.yaml"))):
        content = yaml.safe_load(config.read_text())
        content["batch"] = {**(content.get("batch") or {}), "tokens": 512 * (1 + number % 2)}
        config.write_text(yaml.safe_dump(content))
    assert main(["compare", *folders, "--arm", "optimizer.lr"]) == 2
    assert "batch.tokens" in capsys.readouterr().err


@pytest.mark.slow
def test_a_key_that_a_run_leaves_out_has_its_default(folders, tmp_path, capsys):
    """Runs that set the default are of one arm with those that leave it out."""
    full = {"_target_": "kleiber.nn.FullAttention"}
    set_in_runs(tmp_path / "a", "model", attention=full)
    for number, path in enumerate(sorted((tmp_path / "b").glob("*/config.yaml"))):
        config = yaml.safe_load(path.read_text())
        config["model"]["attention"] = full | ({"qk_norm": True} if number % 2 else {})
        path.write_text(yaml.safe_dump(config))
    command = ["compare", *folders, "--arm", "model.attention.qk_norm"]
    assert main(command) == 2 and "have the value True" in capsys.readouterr().err
    set_in_runs(tmp_path / "a", "model", attention=full | {"qk_norm": False})
    assert main(command) == 0
    assert "loss is lower with QK norm=True than with QK norm=False" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
def test_choices_of_a_group_are_arms_and_a_misspelt_key_is_refused(folders, tmp_path, capsys):
    for name, overrides in (("a", []), ("b", ["model=moe", "model.depth=2"])):
        set_in_runs(tmp_path / name, "model", mlp={"hidden": 64 * len(name + "".join(overrides))})
        for path in (tmp_path / name).glob("*/config.yaml"):
            path.with_name("overrides.yaml").write_text(yaml.safe_dump(overrides))
    assert main(["compare", *folders, "--arm", "model"]) == 0
    text = capsys.readouterr().out.replace("\n", " ")
    assert "loss is lower with model=moe than with model=gpt" in text and "also differ" not in text
    assert main(["compare", *folders, "--arm", "model.dpeth"]) == 2
    assert "model.depth" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("better", "sign"), [("lower", ""), ("higher", "-")])
def test_an_option_tells_which_value_of_a_measure_is_better(folders, capsys, better, sign):
    for folder in folders:
        for path in Path(folder).glob("*/summary.json"):
            summary = json.loads(path.read_text())
            for metrics in (stage["metrics"] for stage in summary["stages"] if stage["metrics"]):
                metrics["val/docs/score_of_mine"] = float(f"{sign}{metrics['val/docs/loss']}")
            path.write_text(json.dumps(summary))
    command = ["compare", *folders, "--measure", "val/docs/score_of_mine"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "--measure val/docs/score_of_mine" in error and "--better lower" in error and "study." not in error
    assert main([*command, "--better", better]) == 0
    output = capsys.readouterr().out.replace("\n", " ")
    assert f"val/docs/score_of_mine is {better} with changed than with plain" in output


@pytest.mark.parametrize("better", ["less", "higher"])
def test_a_direction_that_is_none_or_not_that_of_the_measure_is_refused(folders, capsys, better):
    assert main(["compare", *folders, "--better", better]) == 2
    assert f"--better {better}" in capsys.readouterr().err
