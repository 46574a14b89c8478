"""Dry runs: the estimate covers every run of a plan, and equals what the runs record when they are trained."""

import json
import subprocess
import sys

import pytest
from processes import PATIENCE
from small_run import REPOSITORY
from topic_choices import skip_without_topics

from kleiber.launch import run_cost
from kleiber.launch.main import main
from kleiber.launch.price import LISTED_GROUPS, cell_lines
from kleiber.launch.price_estimate import Prices
from kleiber.records.files import read_json

TINY_TEXT = f"data.path={REPOSITORY / 'tests/data/tiny.txt'}"
SMALL = [
    "trainer=smoke", "data=text", TINY_TEXT, "trainer.threads=1", "logger=csv", "batch.tokens=512",
    "callbacks.samples=null", "launcher=basic",
]  # fmt: skip


@pytest.fixture
def planned(tmp_path, cache_dir, capsys):
    """Makes a dry run; returns the plan that it writes and the text that it prints."""

    def plan(*overrides, code=0):
        file = tmp_path / "plan.json"
        assert main([*SMALL, *overrides, f"root={tmp_path / 'root'}", f"dry_run={file}"]) == code, (
            capsys.readouterr().err
        )
        assert not (tmp_path / "root").exists(), "a dry run writes nothing"
        return json.loads(file.read_text()), capsys.readouterr().out

    return plan


def trained(root):
    """Parameters, tokens and FLOPs of every finished run below a root, by the name of its folder."""
    stages = {path.parent.name: read_json(path)["stages"] for path in root.rglob("summary.json")}
    return {
        name: (last[-1]["params"]["total"], last[-1]["tokens"], pytest.approx(last[-1]["flops"]["model"], rel=1e-9))
        for name, last in stages.items()
    }


SLOWER = [pytest.param(choice, marks=pytest.mark.slow) for choice in (["model=gpt"], ["model=bert", "objective=mlm"])]


@pytest.mark.slow
@pytest.mark.parametrize("choice", [["model=moe", "adapter=null"], *SLOWER])
def test_estimated_counts_of_a_run_equal_its_summary(planned, launch, tmp_path, choice):
    plan, printed = planned(*choice)
    assert [line.split()[0] for line in printed.splitlines()].count("compute") == 1
    assert main([*SMALL, *choice, f"root={tmp_path / 'root'}"]) == 0
    (cell,) = plan["cells"]
    assert trained(tmp_path / "root") == {cell["name"]: (cell["params"], cell["tokens"], cell["flops"])}
    assert (plan["schema"], plan["runs"], plan["params"]) == ("kleiber.plan/1", 1, cell["params"])
    assert plan["seconds"] >= cell["seconds"] > 0 and plan["memory_bytes"] > 2**27
    assert plan["memory_plan"]["bytes"] > 4 * plan["params"]


@pytest.mark.slow
def test_the_memory_of_gpus_is_planned_on_a_machine_without_one(planned):
    plan, printed = planned("trainer=ddp", "trainer.accelerator=gpu", "trainer.precision=bf16", "trainer.devices=2")
    memory = plan["memory_plan"]
    assert (memory["device"], memory["devices"], memory["rows"]) == ("gpu", 2, 1)
    assert sum(memory["parts"].values()) == memory["bytes"] > 16 * plan["params"]
    assert [line.split()[0] for line in printed.splitlines()].count("memory") == 1
    assert plan["seconds"] is None


@pytest.mark.slow
@pytest.mark.parametrize("choice", [["model=lstm"], ["privacy=dp_sgd"], ["trainer.precision=64"]], ids=str)
def test_a_memory_that_is_not_planned_has_a_reason(planned, choice):
    plan, printed = planned(*choice)
    assert plan["memory_plan"] is None
    (line,) = (line for line in printed.splitlines() if line.startswith("memory"))
    assert "not planned: " in line


@pytest.mark.slow
def test_a_hugging_face_model_is_counted_from_its_config(planned):
    """A config without `width` was once priced as one of width 128."""
    options = "{n_embd: 96, n_head: 6, n_inner: 384, n_positions: 64}"
    model = ["model=hf", "model.path=gpt2", "model.weights=random", "model.depth=2", "model.context=64"]
    plan, _ = planned(*model, f"model.config={options}", "budget.steps=4")
    attention, mlp, norms = 4 * 96 * 96 + 4 * 96, 2 * 96 * 384 + 384 + 96, 2 * 2 * 96
    assert plan["params"] == 2 * (attention + mlp + norms) + (272 + 64) * 96 + 2 * 96
    assert plan["memory_plan"]["parts"]["optimizer"] >= 8 * plan["params"]


@pytest.mark.slow
def test_costs_of_a_sweep_are_summed_and_equal_models_built_once(planned, monkeypatch):
    built = []
    build_model = run_cost.build_model
    monkeypatch.setattr(run_cost, "build_model", lambda *arguments: built.append(1) or build_model(*arguments))
    plan, _ = planned("-m", "name=s", "optimizer.lr=0.01,0.02", "seed=0,1", "model.width=32,64", "budget.steps=5")
    assert plan["runs"] == len(plan["cells"]) == 8
    assert len({cell["name"] for cell in plan["cells"]}) == 8
    for key in ("tokens", "flops"):
        assert plan[key] == pytest.approx(sum(cell[key] for cell in plan["cells"]))
    assert plan["params"] == max(cell["params"] for cell in plan["cells"])
    # Two widths, counted once and once more in the plans of the two runs that are measured.
    assert len(built) == 4


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(Prices, "measure", lambda self: None)


@pytest.mark.slow
def test_fine_tunes_of_bases_that_are_not_trained_yet_are_priced(tmp_path, cache_dir, capsys):
    """The dry run of such a study once priced only its bases."""
    other = tmp_path / "other.txt"
    other.write_text((REPOSITORY / "src/kleiber/launch/main.py").read_text())
    base = f"data: text, data.path: {TINY_TEXT.partition('=')[2]}, data.tokenizer: bpe, data.vocab_size: 300"
    arm = f"data: text, data.path: {other}"
    study = [
        *(text for text in SMALL if not text.startswith("data")), "-m", "name=s", f"root={tmp_path / 'root'}",
        "design=methods", f"design.base={{{base}, budget.tokens: 2048, retention: null}}", "design.tokens=4096",
        f"design.arms={{none: {{{arm}}}, replay: {{{arm}, retention: replay, retention.replay.fraction: [0.1, 0.5]}}}}",
        "design.lrs=[0.003]", "design.seeds=1",
    ]  # fmt: skip
    assert main([*study, f"dry_run={tmp_path / 'plan.json'}"]) == 0, capsys.readouterr().err
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["runs"] == 1 + 3 and not (tmp_path / "root").exists()
    assert all(cell["seconds"] > 0 for cell in plan["cells"])
    assert main(study) == 0
    priced = {cell["name"]: (cell["params"], cell["tokens"], cell["flops"]) for cell in plan["cells"]}
    assert trained(tmp_path / "root") == priced


@pytest.mark.slow
def test_a_transfer_study_is_priced_with_all_its_rounds(unmeasured, tmp_path, cache_dir, monkeypatch, capsys):
    labels = "\n".join(json.dumps({"text": f"word {n} here", "label": n % 2}) for n in range(80))
    (tmp_path / "rows.jsonl").write_text(labels)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf/experiment").mkdir(parents=True)
    kind = {"model": ["model=bert", "model.width=32"], "pretrain": ["objective=mlm"], "lrs": [0.003, 0.01, 0.02]}
    design = {
        "kinds": {"mine": {**kind, "scratch": [0.002, 0.005]}}, "sources": {"a": ["data=text", TINY_TEXT]},
        "tasks": {"rows": ["data=labelled", "data.path=rows.jsonl", "budget.steps=3"]},
        "only": ["mine", "a", "rows"], "sizes": ["20k"], "seeds": 2, "finetune": ["objective=classify"], "shares": [1],
        "share_sizes": [], "scratch_shares": [], "control": [], "tokenizer": "a/20k",
        "pretrain": ["budget.steps=4", "data.tokenizer=bpe", "data.vocab_size=300"],
    }  # fmt: skip
    (tmp_path / "conf/experiment/small.yaml").write_text("# @package _global_\n" + json.dumps({"design": design}))
    small = ["trainer=smoke", "logger=csv", "batch.tokens=512", "model.context=64", f"root={tmp_path / 'r'}"]
    skip_without_topics("study=transfer")
    study = ["--config-dir", "conf", "study=transfer", "experiment=small", *small]
    assert main([*study, "dry_run=plan.json"]) == 0, capsys.readouterr().err
    plan = json.loads((tmp_path / "plan.json").read_text())
    bases, tuned, second_seed = 2, 3 + 2, 2
    assert plan["runs"] == bases + tuned + second_seed
    assert plan["seconds"] is None
    sizes = sorted({cell["params"] for cell in plan["cells"]})
    assert sizes[1] - sizes[0] == 2 * 32 + 2, "a fine-tune has the head of its task"


@pytest.mark.parametrize("value", ["maybe", "no/such/folder/plan.json", "plan.yaml"])
def test_a_wrong_value_of_dry_run_is_refused(tmp_path, capsys, value):
    assert main([f"dry_run={value}", f"root={tmp_path}"]) == 2
    assert f"dry_run={value}" in capsys.readouterr().err


@pytest.mark.process
@pytest.mark.slow
def test_a_dry_run_imports_no_torch_into_the_process_of_the_command(tmp_path):
    arguments = [*SMALL, "-m", "name=s", "seed=0,1", "budget.steps=4", f"dry_run={tmp_path / 'plan.json'}"]
    script = (
        f"import sys; from kleiber.launch.main import main; code = main({arguments!r}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["runs"] == 2


def test_cells_of_equal_size_and_tokens_are_one_line():
    def cell(name, params, tokens, seconds=60.0):
        return {"name": name, "params": params, "flops": 6.0 * params * tokens, "tokens": tokens, "seconds": seconds}

    cells = [cell(f"small-seed{seed}", 10, 100, 60.0 + seed) for seed in range(24)] + [cell("large", 20, 100, None)]
    _, small, large = cell_lines({"cells": cells})
    assert small.split()[:2] == ["24", "10"] and "1 min 12 s" in small and small.endswith("small-seed0")
    assert large.split()[0] == "1" and large.split()[4] == "-"
    many = cell_lines({"cells": [cell(f"size{size}", size, 100) for size in range(1, 20)]})
    assert len(many) == LISTED_GROUPS + 2 and many[-1].split()[0] == str(19 - LISTED_GROUPS)
