"""Each study, trained at smoke size: its first cells run and are analysed, and a second start finds them finished."""

import pytest

from kleiber.catalog import read_runs
from kleiber.launch import main

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
