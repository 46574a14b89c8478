"""SIGKILL anywhere, then the same command: bit-identical weights, losses and files. FAULTS 1, 2, 4, 5."""

import json
import signal
from pathlib import Path

import pytest
from tables import folder as write_table
from wandb_records import read

from kleiber.records.catalog import read_run
from kleiber.runs.huggingface import export

KILLED = -signal.SIGKILL
STEPS = ["budget.steps=30", "trainer.max_steps=30", "callbacks.log.every=1", "callbacks.checkpoints.every=4"]
STEPS += ["eval.every_steps=7", "batch.micro=3", "data.max_bytes=8000"]  # two epochs and a bit
KILLS = [
    ("kleiber.training.lit.accumulate", 7),
    ("kleiber.training.checkpoint._commit", 2),
    ("kleiber.evals.task_scores.held_out_loss", 2),
    ("kleiber.training.checkpoint._sync", 5),
    ("kleiber.training.lit.normalize_gradients", 6),
]


def facts(root: Path) -> tuple[str, list[dict], dict]:
    """Digest of the final weights, logged rows without times, and what the summary measured."""
    (folder,) = root.glob("*/*")
    last = folder / "stages/main/checkpoints/step-00000030"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]
    stage = json.loads((folder / "summary.json").read_text())["stages"][0]
    meta = json.loads((last / "meta.json").read_text())["sha256"]
    kept = {k: stage[k] for k in ("metrics", "curve", "tokens", "steps")}
    return meta["model.safetensors"], rows, kept


@pytest.mark.parametrize("model", [pytest.param("gpt", marks=pytest.mark.slow), "moe"])
@pytest.mark.slow
def test_five_kills_and_the_result_is_that_of_the_unbroken_run(child, once, tmp_path, model):
    options = [f"model={model}", *STEPS]
    unbroken = once(*options).parents[1]
    for at in KILLS:
        assert child(*options, root="killed", at=at) == KILLED, at
    assert child(*options, root="killed") == 0
    assert facts(tmp_path / "killed") == facts(unbroken)


@pytest.mark.parametrize(
    ("function", "file"), [("samples.generate", "samples.txt"), ("classes.evaluation_batches", "classes/*.json")]
)
@pytest.mark.slow
def test_a_kill_after_the_last_checkpoint_leaves_no_finished_run_without_its_files(
    child, once, tmp_path, function, file
):
    """FAULTS 62."""
    place, options = f"kleiber.training.callbacks.{function}", []
    if file != "samples.txt":
        table = [{"text": f"text {i}", "label": ("bad", "good")[i % 3 > 0]} for i in range(60)]
        data = write_table(tmp_path / "t", train=table, validation=table[:20])
        options = ["data=labelled", f"data.path={data}", "objective=classify"]
    (expected,) = once(*options).glob(file)
    assert child(*options, root="killed", at=(place, 1)) == KILLED
    (folder,) = tmp_path.glob("killed/*/*")
    assert not list(folder.glob(file)) and list(folder.glob("stages/main/checkpoints/step-00000020"))
    assert child(*options, root="killed") == 0
    (path,) = folder.glob(file)
    assert path.read_text() == expected.read_text()


@pytest.mark.parametrize("damage", ["cut", "empty"])
@pytest.mark.slow
def test_a_damaged_newest_checkpoint_falls_back_says_so_and_ends_the_same(
    child, launch, once, tmp_path, capsys, damage
):
    unbroken = once(*STEPS).parents[1]
    assert child(*STEPS, root="killed", at=("kleiber.training.lit.accumulate", 30)) == KILLED
    newest = max(tmp_path.glob("killed/*/*/stages/main/checkpoints/step-*")) / "model.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    launch(*STEPS, root="killed")
    told = capsys.readouterr().err
    assert str(newest) in told and "resuming at step" in told
    assert facts(tmp_path / "killed") == facts(unbroken)


@pytest.mark.slow
@pytest.mark.long
def test_the_mirror_of_a_killed_run_is_read_to_its_last_row_and_has_no_end(child, tmp_path):
    """FAULTS 47: no exit record means that nobody was there to write one."""
    mirror = ["logger=wandb", "logger.wandb.mode=offline", "callbacks.log.every=1", "eval.every_steps=0"]
    long = ["budget.steps=2000", "trainer.max_steps=2000"]  # W&B's service writes a moment later, and here it dies too
    assert child(*long, *mirror, root="killed", at=("kleiber.training.lit.accumulate", 1500)) == KILLED
    (folder,) = tmp_path.glob("killed/*/*")
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found = read(path, patience=0)
    assert found["exit_code"] is None and read_run(folder).status == "killed"
    steps = [row["trainer/global_step"] for row in found["history"] if "train/loss" in row]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 10


@pytest.mark.slow
def test_a_run_that_is_killed_after_a_callback_of_lightning_stopped_it_trains_no_further(child, once, tmp_path):
    stop = "_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/tiny/loss,patience:1,min_delta:100"
    options = [f"+callbacks.stop={{{stop}}}", "eval.every_steps=4"]
    unbroken = once(*options)
    assert child(*options, root="killed", at=("kleiber.training.callbacks.samples.generate", 1)) == KILLED
    assert child(*options, root="killed") == 0
    (folder,) = tmp_path.glob("killed/*/*")
    (expected,), (stage,) = (json.loads((run / "summary.json").read_text())["stages"] for run in (unbroken, folder))
    assert stage["steps"] == 8
    assert all(stage[key] == expected[key] for key in ("steps", "metrics", "curve", "checkpoint"))


@pytest.mark.parametrize("objective", ["classify", "reward"])
@pytest.mark.slow
def test_a_killed_run_of_a_task_head_on_a_hugging_face_folder_ends_the_same(child, launch, once, tmp_path, objective):
    folder = tmp_path / "exported"
    export(str(launch("trainer.max_steps=2", root="source")), folder)
    if objective == "classify":
        rows = [{"text": f"{('good', 'bad')[i % 2]} text {i}", "label": i % 2} for i in range(80)]
        data = ["data=labelled", f"data.path={write_table(tmp_path / 'rows', train=rows, validation=rows[:20])}"]
    else:
        rows = [{"prompt": f"say {i}", "chosen": "good", "rejected": "bad"} for i in range(80)]
        data = ["data=preference", f"data.path={write_table(tmp_path / 'rows', train=rows, validation=rows[:20])}"]
    options = ["init=hf", f"init.path={folder}", f"objective={objective}", *data, *STEPS[:-2], "batch.micro=3"]
    unbroken = once(*options).parents[1]
    assert child(*options, root="killed", at=("kleiber.training.lit.accumulate", 17)) == KILLED
    assert child(*options, root="killed") == 0
    assert facts(tmp_path / "killed") == facts(unbroken)
