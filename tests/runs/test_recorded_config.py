"""The recorded config of a run: paths that are gone lead to where its study, or the copy of its tokenizer, is now."""

import shutil

import pytest
import torch

from kleiber.launch.main import compose_config
from kleiber.runs.open import open_model
from kleiber.runs.recorded_config import TOKENIZER_COPY, recorded_configs, with_present_paths

from .trained_runs import DENSE, LORA, trained_run

CHECKPOINT = "kleiber.runs.Checkpoint"


def test_a_path_that_is_gone_leads_to_the_run_of_that_name_beside_this_one(tmp_path):
    home = tmp_path / "new" / "study"
    for run in ("study/base", "study/tuned", "pretraining/wiki"):
        (home.parent / run).mkdir(parents=True)
        (home.parent / run / "config.yaml").touch()
    copy = home / "tuned" / TOKENIZER_COPY / "smol"
    copy.mkdir(parents=True)
    kept = {
        "path": "/gone/text.txt",
        "domain": "base/main",
        "tokenizer": "/gone/smol",
        "stays": str(home / "base/main"),
    }
    config = {
        "data": kept,
        "init": {"path": "/gone/study/base/main"},
        "objective": {"teacher": "/gone/pretraining/wiki/main", "other": "/gone/study/elsewhere/main"},
    }
    assert with_present_paths(config, home / "tuned") == {
        "data": {**kept, "tokenizer": str(copy)},
        "init": {"path": str(home / "base/main")},
        "objective": {"teacher": str(home.parent / "pretraining/wiki/main"), "other": "/gone/study/elsewhere/main"},
    }
    assert with_present_paths(config, home / "base")["data"] == kept


def test_a_relative_path_of_data_leads_to_the_folder_of_the_launch_unless_it_is_here(tmp_path, monkeypatch):
    run = tmp_path / "work" / "multirun" / "mine" / "run"
    run.mkdir(parents=True)
    (tmp_path / "work" / "notes").mkdir()
    (tmp_path / "work" / "text").touch()
    data = {"path": "notes", "column": "text", "data": {"path": "gone", "validation": "text"}}
    config = {"root": "multirun", "name": "mine", "data": data, "init": {"path": "notes"}}
    monkeypatch.chdir(tmp_path)
    present = {**data, "path": str(tmp_path / "work/notes")}
    present["data"] = {"path": "gone", "validation": str(tmp_path / "work/text")}
    assert with_present_paths(config, run) == {**config, "data": present}
    assert with_present_paths({**config, "name": "other"}, run)["data"] == data
    assert with_present_paths({**config, "root": str(tmp_path / "work/multirun")}, run)["data"] == data
    (tmp_path / "notes").mkdir()
    assert with_present_paths(config, run)["data"]["path"] == "notes"
    monkeypatch.chdir(tmp_path / "work")
    assert with_present_paths(config, run) == config


def test_an_adapter_opens_with_the_weights_of_its_start_point_after_the_study_was_moved(tmp_path):
    (tmp_path / "old").mkdir()
    base = trained_run(tmp_path / "old" / "base", DENSE)
    tuned = trained_run(tmp_path / "old" / "tuned", DENSE, LORA, init={"_target_": CHECKPOINT, "path": f"{base}/main"})
    before = open_model(tuned).model.state_dict()
    (tmp_path / "old").rename(tmp_path / "new")
    after = open_model(tmp_path / "new" / "tuned").model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_a_fine_tuned_run_opens_on_its_own_and_after_a_move_with_the_tokenizer_of_its_start_point(launch, tmp_path):
    base = launch("data.tokenizer=bpe", "data.vocab_size=300", "budget.steps=2", "eval.every_steps=0")
    start = ["init=checkpoint", f"init.path={base}"]
    tuned = launch(*start, "budget.steps=1", "eval.every_steps=0")
    before = open_model(tuned).tokenizer
    moved = tmp_path / "moved" / tuned.parent.name
    shutil.copytree(tuned.parent, moved)
    alone = shutil.copytree(tuned, tmp_path / "elsewhere" / "alone")
    shutil.rmtree(tuned.parent)
    places = {moved / tuned.name: moved / base.name / "tokenizer", alone: alone / TOKENIZER_COPY / "tokenizer"}
    for folder, place in places.items():
        opened = open_model(folder)
        assert opened.tokenizer.hash == before.hash and opened.corpus.tokenizer.hash == before.hash
        assert recorded_configs(folder, "main")["main"]["data"]["tokenizer"] == str(place)
        assert compose_config(["init=checkpoint", f"init.path={folder}"])["data"]["tokenizer"] == str(place)
