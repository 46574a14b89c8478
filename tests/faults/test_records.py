"""Records of a run that were damaged or replaced while it was down, through the command. FAULTS 55, 56, 64, 65, 68."""

import json

import pytest

from kleiber.records.summary_file import read_summary

STEPS = ["budget.steps=6", "callbacks.checkpoints.every=2", "callbacks.samples=null", "eval.every_steps=0"]


def weights(folder) -> str:
    """The hash of the final weights of a run."""
    meta = folder / "stages/main/checkpoints/step-00000006/meta.json"
    return json.loads(meta.read_text())["sha256"]["model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        *(pytest.param(text, marks=pytest.mark.slow) for text in ('{"status": "finished"}', "\0\0\0")),
        '{"stages": [1]}',
        "folder",
    ],
)
def test_a_run_whose_summary_is_damaged_goes_on_and_names_it(launch, interrupted, once, capsys, damage):
    with interrupted(2):
        path = launch(*STEPS, code=130) / "summary.json"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    else:
        path.write_text(damage)
    capsys.readouterr()
    folder = launch(*STEPS)
    printed = capsys.readouterr().err
    assert str(path) in printed and "resuming at step 2" in printed and "Traceback" not in printed
    assert read_summary(folder)["status"] == "finished" and weights(folder) == weights(once(*STEPS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "meta",
    [
        *(pytest.param(meta, marks=pytest.mark.slow) for meta in ("{}", "[]", "\0", '{"step": 4}')),
        '{"step": 4, "sha256": {}}',
    ],
)
def test_a_checkpoint_without_hashes_is_passed_over_though_its_weights_were_flipped(
    launch, interrupted, once, capsys, meta
):
    with interrupted(3):  # step 6 is not complete
        newest = launch(*STEPS, code=130) / "stages/main/checkpoints/step-00000004"
    flipped = bytearray((newest / "model.safetensors").read_bytes())
    flipped[-3] ^= 64
    (newest / "model.safetensors").write_bytes(flipped)
    (newest / "meta.json").write_text(meta)
    capsys.readouterr()
    folder = launch(*STEPS)
    assert str(newest / "meta.json") in capsys.readouterr().err
    assert weights(folder) == weights(once(*STEPS))


def test_a_lock_that_is_a_link_is_refused_and_its_target_stays(launch, interrupted, tmp_path, capsys):
    with interrupted(1):
        folder = launch(*STEPS, code=130)
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("my thesis")
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(thesis)
    launch(*STEPS, code=2)
    assert str(folder / ".lock") in capsys.readouterr().err and thesis.read_text() == "my thesis"
    (folder / ".lock").unlink()
    launch(*STEPS)


@pytest.mark.parametrize("name", ["../../../escaped", "..", ".x"])
def test_the_name_of_a_stage_cannot_lead_out_of_the_run(launch, tmp_path, capsys, name):
    before = set(tmp_path.rglob("*"))
    launch("stages=chain", f"stages.chain={{{name}:{{}},b:{{}}}}", *STEPS, code=2)
    assert f"'{name}'" in capsys.readouterr().err and set(tmp_path.rglob("*")) == before
