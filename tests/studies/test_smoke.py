"""Each study, trained at smoke size: its first cells run and are analysed, and a second start finds them finished."""

import json

import pytest

from kleiber.launch.main import main
from kleiber.records import archive
from kleiber.records.catalog import archived_runs, read_runs

SMOKE = ["trainer=smoke", "launcher=basic", "logger=csv", "study.max_cells=3", "trainer.threads=1", "eval.tokens=2048"]
OWN = {
    "context": ["model.context=32,64", "data=recall", "batch.tokens=256", "callbacks.positions.tokens=2048"],
    "isoflop": ["design.flops=3e14", "batch.tokens=512"],
    "accounting": ["batch.tokens=512", "data.tokenizer=bytes", "data.vocab_size=null", "study.min_tokens=1k"],
    "clm_vs_mlm": ["batch.tokens=512"],
    "data_repeat": ["batch.tokens=512", "data.unique=null,10k,20k", "design.widths=[32]"],
    "moe_law": ["batch.tokens=512", "model.mlp.num_experts=2,4", "design.widths=[32,48]"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_a_study_runs_small_says_what_it_can_and_continues(name, tmp_path, cache_dir, capsys):
    command = [f"study={name}", *SMOKE, *OWN[name], f"root={tmp_path}"]
    assert main(command) == 0, capsys.readouterr().err
    runs = read_runs(tmp_path / name)
    assert len(runs) == 3 and {run.status for run in runs} == {"finished"}
    first = capsys.readouterr()
    assert "report:" in first.out or "error:" in first.err, "too few points are said, not hidden"
    assert main(command) == 0
    assert "3 of 3 cells are finished already" in capsys.readouterr().out


ARMS = "{ewc: null, lwf: null, agem: null, l2sp: null, generated: null, replay: {retention.replay.fraction: [0.2]}}"
MOVED = {
    "data_repeat": ["data.unique=null,10k", "design.widths=[32]", "budget.tokens=null", "study.max_cells=4"],
    "forgetting": [f"design.arms={ARMS}", "design.lrs=[0.01,0.02]", "study.seeds=2", "design.tokens=null"],
}
MEASURED = {"seconds", "ms a step", "MiB"}  # of the machine, which no seed makes the same


def unmeasured(found):
    if isinstance(found, dict):
        return {key: unmeasured(value) for key, value in found.items() if key not in MEASURED}
    return [unmeasured(value) for value in found] if isinstance(found, list) else found


@pytest.mark.slow
@pytest.mark.parametrize("name", MOVED)
def test_a_study_goes_on_in_another_place_from_its_rows_alone(name, tmp_path, cache_dir, capsys):
    """Nothing is trained there and it finds the same; of a cell that is missing, that one and what it starts from."""
    command = [f"study={name}", *SMOKE, "batch.tokens=512", "study.max_cells=99", *MOVED[name]]
    assert main([*command, f"root={tmp_path / 'one'}"]) == 0
    one, two, three = (tmp_path / place / name for place in ("one", "two", "three"))
    rows = archive.read(one / archive.NAME)
    found = json.loads((one / "findings.json").read_text())
    dropped = rows[-1]["run"]
    for place, kept in ((two, rows), (three, [row for row in rows if row["run"] != dropped])):
        place.mkdir(parents=True)
        archive.append(place / archive.NAME, kept)
        capsys.readouterr()
        assert main([*command, f"root={place.parent}"]) == 0
        assert unmeasured(json.loads((place / "findings.json").read_text())) == unmeasured(found)
    assert not list(two.glob("*/config.yaml"))
    trained = {path.parent.name for path in three.glob("*/summary.json")}
    bases = {run.name for run in archived_runs(one / archive.NAME) if run.config["init"] is None}
    assert len(trained - bases) == (1 if name == "forgetting" else 0)
    assert len(trained & bases) == 1
