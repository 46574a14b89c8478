"""A run that was interrupted continues on the inputs that it started with, and on no others. FAULTS 58, 59."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import REPOSITORY

from kleiber.config.errors import ConfigError
from kleiber.records.regular_files import file_sha256
from kleiber.records.summary_file import read_summary
from kleiber.runs.inputs import changed_inputs, check_inputs, folder_hash, weights_hash

from .trained_runs import DENSE, LORA, trained_run

DATA = REPOSITORY / "tests/data"
STEPS = ["budget.steps=4", "callbacks.checkpoints.every=1", "callbacks.samples=null", "eval.every_steps=0"]


def chain(*data: str) -> list[str]:
    """Overrides of a chain whose first stage has other data than the second."""
    return ["stages=chain", f"stages.chain={{one:{{data:{{{','.join(data)}}}}},two:{{}}}}"]


MIXED = chain("_target_: kleiber.data.MixtureCorpus", f"parts: {{{DATA}/tiny.txt: 0.5, MINE: 0.5}}")
REPEATED = chain("_target_: kleiber.data.Repeated", "data: {_target_: kleiber.data.Text, path: MINE}")
KINDS = {
    "text": ("tiny.txt", ["data=text", "data.path=MINE"]),
    "mixture": ("tiny.txt", MIXED),
    "repeated": ("tiny.txt", REPEATED),
    "labelled": ("labelled.jsonl", ["data=labelled", "objective=classify", "data.path=MINE"]),
    "instruct": ("instruct.jsonl", ["data=instruct", "objective=sft", "data.path=MINE"]),
    "preference": ("preference.jsonl", ["data=preference", "objective=dpo", "data.path=MINE", "optimizer.lr=1e-3"]),
    "unpaired": ("unpaired.jsonl", ["data=unpaired", "objective=kto", "data.path=MINE", "optimizer.lr=1e-3"]),
}


@pytest.fixture
def resume(launch, interrupted, capsys) -> Callable[..., str]:
    """Interrupts a run after its second checkpoint, calls `change`, runs it again, and returns what it printed."""

    def run(change: Callable[[], object], *options: str, code: int = 2) -> str:
        with interrupted(2):
            launch(*STEPS, *options, code=130)
        change()
        capsys.readouterr()
        launch(*STEPS, *options, code=code)
        return next((line for line in capsys.readouterr().err.splitlines() if line.startswith("kleiber: ")), "")

    return run


def edit(path: Path) -> None:
    """Changes a few words in the second half of a file; its size and its time stay. FAULTS 110."""
    text, facts = path.read_text(), path.stat()
    half = len(text) // 2
    for old, new in (("song", "sung"), (" + ", " - "), ("the", "teh")):
        text = text[:half] + text[half:].replace(old, new, 9)
    path.write_text(text)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_data_that_changed_is_refused_with_both_hashes_and_restored_data_goes_on(kind, resume, launch, tmp_path):
    name, options = KINDS[kind]
    place = tmp_path / f"mine{Path(name).suffix}"
    shutil.copy(DATA / name, place)
    options = [option.replace("MINE", str(place)) for option in options]
    error = resume(lambda: edit(place), *options)
    recorded = read_summary(next(tmp_path.glob("runs/*/*")))["inputs"]
    (key,) = [name for name in recorded if name.endswith("data/mine")]
    assert f"{key} was {recorded[key]} and is " in error and "resume=never" in error
    assert error.count(" and is ") == 1
    shutil.copy(DATA / name, place)  # other times, the same content
    folder = launch(*STEPS, *options)
    assert read_summary(folder)["status"] == "finished" and read_summary(folder)["inputs"] == recorded


@pytest.mark.slow
def test_a_new_run_on_the_changed_data_notes_its_own_hash(resume, launch, tmp_path):
    place = tmp_path / "mine.txt"
    shutil.copy(DATA / "tiny.txt", place)
    resume(lambda: edit(place), f"data.path={place}")
    launch(*STEPS, f"data.path={place}", "resume=never")
    hashes = {read_summary(folder)["inputs"]["data/mine"] for folder in tmp_path.glob("runs/*/*")}
    assert len(hashes) == 2


@pytest.mark.slow
def test_text_of_another_stage_and_a_trained_tokenizer_are_inputs_of_a_chain(resume, tmp_path):
    place = tmp_path / "mine.txt"
    shutil.copy(DATA / "tiny.txt", place)
    options = [*chain(f"path:{place}"), "retention=replay"]
    assert "one/data/mine" in resume(lambda: edit(place), *options)
    bpe = ["data.tokenizer=bpe", "data.vocab_size=300", f"data.path={place}", "seed=1"]
    error = resume(lambda: place.write_text(place.read_text() + "zq " * 3000), *bpe)
    assert "tokenizer was bpe" not in error and "tokenizer was" in error and "data/mine was" in error


@pytest.mark.slow
def test_the_data_of_a_start_point_that_replay_reads_again_is_an_input(resume, launch, tmp_path):
    place = tmp_path / "old.txt"
    shutil.copy(DATA / "tiny.txt", place)
    start = launch(*STEPS, f"data.path={place}", root="start")
    options = ["init=checkpoint", f"init.path={start}", "retention=replay"]
    assert "init/data/old" in resume(lambda: edit(place), *options)


def flip(path: Path) -> None:
    """Changes one weight of a safetensors file."""
    weights = load_file(path)
    name = min(weights)
    weights[name] = weights[name] + torch.eye(*weights[name].shape[-2:]) if weights[name].ndim > 1 else -weights[name]
    save_file(weights, path, {"format": "pt"})


def retrain(place: Path) -> None:
    """Changes one weight of a checkpoint, which stays valid."""
    flip(place / "model.safetensors")
    meta = json.loads((place / "meta.json").read_text())
    meta["sha256"]["model.safetensors"] = file_sha256(place / "model.safetensors")
    (place / "meta.json").write_text(json.dumps(meta))


HF = {
    "model=hf": ["model=hf", "model.path=MINE", "model.context=64", "batch.tokens=256"],
    "init=hf": ["init=hf", "init.path=MINE", "model.context=64", "batch.tokens=256"],
    "teacher": ["objective=distill", "objective.teacher=MINE", "data.tokenizer=MINE", "model.context=64"],
}


@pytest.mark.parametrize(("kind", "name"), [("model=hf", "model"), ("init=hf", "init"), ("teacher", "teacher")])
@pytest.mark.slow
def test_a_foreign_folder_that_was_replaced_is_refused(kind, name, resume, launch, shared, tmp_path):
    place = tmp_path / "stories"
    shutil.copytree(shared / "data/models/stories260K", place)
    options = [option.replace("MINE", str(place)) for option in HF[kind]]
    error = resume(lambda: flip(place / "model.safetensors"), *options)
    assert f"{name} was {folder_hash(shared / 'data/models/stories260K')}" in error and folder_hash(place) in error
    shutil.copy(shared / "data/models/stories260K/model.safetensors", place)
    assert read_summary(launch(*STEPS, *options))["status"] == "finished"


@pytest.mark.slow
def test_a_start_point_that_was_trained_again_is_refused(resume, launch, tmp_path):
    start = launch(*STEPS, root="start")
    before = weights_hash(str(start))

    def train_again() -> None:
        retrain(start / "stages/main/checkpoints/step-00000004")

    error = resume(train_again, "init=checkpoint", f"init.path={start}")
    assert f"init was {before} and is {weights_hash(str(start))}" in error


def test_the_weights_below_an_adapter_count(tmp_path):
    base = trained_run(tmp_path / "base", DENSE)
    init = {"_target_": "kleiber.runs.Checkpoint", "path": str(base)}
    tuned = trained_run(tmp_path / "tuned", DENSE, LORA, init=init)
    before = weights_hash(str(tuned))
    retrain(base / "stages/main/checkpoints/step-00000001")
    assert weights_hash(str(tuned)) != before


def test_of_a_run_whose_newest_checkpoint_is_damaged_the_weights_that_are_loaded_count(tmp_path):
    run = trained_run(tmp_path / "run", DENSE)
    first = run / "stages/main/checkpoints/step-00000001"
    before, newest = weights_hash(str(run)), first.with_name("step-00000002")
    shutil.copytree(first, newest)
    (newest / "meta.json").write_text((first / "meta.json").read_text().replace('"step": 1', '"step": 2'))
    retrain(newest)
    assert weights_hash(str(run)) != before
    flip(newest / "model.safetensors")
    assert weights_hash(str(run)) == before


def test_only_recorded_inputs_are_compared():
    assert changed_inputs({}, {"data/a": "1"}) == []
    assert changed_inputs({"data/a": "1"}, {"data/a": "1", "init": "2"}) == []
    assert len(changed_inputs({"data/a": "1", "data/b": "1", "init": "3"}, {"data/a": "2", "data/b": "1"})) == 2
    with pytest.raises(ConfigError, match="data/a was 1 and is 2"):
        check_inputs({"data/a": "1"}, {"data/a": "2"}, Path("run"))
