"""Sharded ranks give the numbers of data-parallel ones and of one process, and the same checkpoints."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, alive, rank_of, wait_for
from safetensors.torch import load_file
from small_run import REPOSITORY, TINY
from training.test_trainer_ddp import ends, rows

OPTIONS = [
    "trainer.precision=64", "model.depth=2", "model.context=64", "data.max_bytes=20000", "budget.steps=8",
    "eval.tokens=1024", "callbacks.log.every=1", "batch.micro=3", "callbacks.checkpoints.every=2",
]  # fmt: skip
PAIR = [*OPTIONS, "trainer.devices=2"]
ALONE = [*OPTIONS, "trainer=cpu"]


def last(root: Path) -> dict:
    """The last weights of a run."""
    return load_file(max(root.glob("*/*/stages/main/checkpoints/step-????????")) / "model.safetensors")


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-9


def done(run: subprocess.Popen) -> None:
    out, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, out + err


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("model", ["gpt", pytest.param("moe", marks=pytest.mark.long)])
def test_sharded_ranks_give_the_numbers_of_ddp(process, tmp_path, model):
    """Losses, norms of gradients, scores and weights, over micro-batches and in fp64."""
    for trainer in ("ddp", "fsdp"):
        done(process(f"trainer={trainer}", f"model={model}", *PAIR, root=trainer))
    expected, logged = (rows(next((tmp_path / name).glob("*/*"))) for name in ("ddp", "fsdp"))
    assert len(expected) == len(logged) >= 8
    assert {"train/loss", "train/grad_norm"} <= logged[0].keys()
    for row, other in zip(expected, logged, strict=True):
        assert other == pytest.approx(row, abs=1e-9)
    assert_same(last(tmp_path / "ddp"), last(tmp_path / "fsdp"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_sharded_ranks_in_bf16_round_what_those_of_ddp_round(process, tmp_path):
    """The gathered weights are the copies that autocast makes, so only the order of sums differs."""
    options = [text.replace("precision=64", "precision=bf16") for text in PAIR]
    for trainer in ("ddp", "fsdp"):
        done(process(f"trainer={trainer}", "model=moe", *options, root=trainer))
    expected, logged = (
        [row for row in rows(next((tmp_path / name).glob("*/*"))) if "train/loss" in row] for name in ("ddp", "fsdp")
    )
    assert len(expected) == len(logged) == 8
    for row, other in zip(expected[:2], logged[:2], strict=True):
        assert other["train/loss"] == pytest.approx(row["train/loss"], abs=1e-6)
        assert other["train/grad_norm"] == pytest.approx(row["train/grad_norm"], rel=1e-4)
    for row, other in zip(expected, logged, strict=True):  # the order of sums changes which experts are chosen
        assert other["train/loss"] == pytest.approx(row["train/loss"], abs=0.02)
    assert {value.dtype for value in last(tmp_path / "fsdp").values()} == {torch.float32}


OTHER = "\n\n".join(" ".join(f"word{(7 * row + place) % 23}" for place in range(60)) for row in range(60))
CHAIN = "stages.chain={first:{budget:{steps:2}},second:{data:{path:{other}},budget:{steps:4}}}"
CHOICES = {  # overrides of runs that two sharded ranks and one process train
    "base": ["budget.steps=3"],
    "moe": ["model=moe", "optimizer=muon", "budget.steps=3"],
    "muon": ["optimizer=muon", "callbacks=[default,ema]", "callbacks.ema.decay=0.5", "budget.steps=4"],
    "lora": ["adapter=lora", "init=checkpoint", "init.path={base}", "budget.steps=3"],
    "dora": ["model=moe", "adapter=dora", "init=checkpoint", "init.path={moe}", "budget.steps=3"],
    "freeze": ["adapter=freeze", "adapter.train=[attention]", "budget.steps=3"],
    "ewc": [CHAIN, "retention=[ewc,l2sp]", "retention.ewc.samples=6"],
    "agem": [CHAIN, "retention=[agem]", "retention.agem.rows=3"],
    "lwf": [CHAIN, "retention=[lwf]"],
    "generated": [CHAIN, "retention=[replay,lwf]", *(f"retention.{m}.source=generated" for m in ("replay", "lwf")),
                  *(f"retention.{m}.generated_tokens=256" for m in ("replay", "lwf"))],
    "wise": [CHAIN, "retention=[wise]", "retention.wise.alphas=[0,.5]", "adapter=lora"],
    "compile": ["trainer.compile=true", "model.depth=1", "budget.steps=3"],
}  # fmt: skip
SEVERAL = """
import json, sys
import torch
from kleiber.launch.main import main
graphs = []
for overrides in json.load(open(sys.argv[1])):
    torch._dynamo.utils.counters.clear()
    if main(overrides) != 0:
        sys.exit(f"failed: {overrides}")
    graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
json.dump(graphs, open(sys.argv[1], "w"))
"""


def overrides(folder: Path, name: str, trainer: str) -> list[str]:
    """The command line of a run of CHOICES in a root of its own; others start from the run of one process."""
    replaced = CHOICES[name]
    for other in ("base", "moe"):
        start = next((folder / f"{other}-cpu").glob("*/*"), None)
        replaced = [text.replace(f"{{{other}}}", str(start)) for text in replaced]
    chain = ["stages=chain", "budget.steps=null"] if CHAIN in CHOICES[name] else []
    options = [*TINY, *OPTIONS, "eval.tokens=512", f"trainer={trainer}", f"root={folder / f'{name}-{trainer}'}", *chain]
    if trainer == "fsdp":
        options += ["trainer.devices=2"]
    else:
        replaced = [text for text in replaced if text != "trainer.compile=true"]
    return [*options, *(text.replace("{other}", str(folder / "other.txt")) for text in replaced)]


def train_several(folder: Path, runs: list[list[str]], *launcher: str) -> list[int]:
    """Trains one run after another in the same process or processes; the number of compiled graphs of each."""
    file = folder / "runs.json"
    file.write_text(json.dumps(runs))
    command = [sys.executable, *launcher, str(folder / "several.py"), str(file)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, timeout=3 * PATIENCE)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_two_sharded_ranks_train_what_one_process_trains(cache_dir, tmp_path, subtests):
    """Weights of all checkpoints, those of an average and of WiSE included, and the scores.

    One test, since the processes start once for all runs.
    """
    (tmp_path / "other.txt").write_text(OTHER)
    (tmp_path / "several.py").write_text(SEVERAL)
    for names in (["base", "moe"], [name for name in CHOICES if name not in ("base", "moe")]):
        train_several(tmp_path, [overrides(tmp_path, name, "cpu") for name in names])
    pair = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    graphs = train_several(tmp_path, [overrides(tmp_path, name, "fsdp") for name in CHOICES], *pair)
    assert {name for name, count in zip(CHOICES, graphs, strict=True) if count} == {"compile"}
    for name in CHOICES:
        with subtests.test(name):
            assert_same_run(*(next((tmp_path / f"{name}-{trainer}").glob("*/*")) for trainer in ("cpu", "fsdp")))


def assert_same_run(alone: Path, pair: Path) -> None:
    saved = sorted(path.relative_to(alone) for path in alone.glob("stages/*/*/step-*"))
    assert saved and saved == sorted(path.relative_to(pair) for path in pair.glob("stages/*/*/step-*"))
    for path in saved:
        assert_same(*(load_file(folder / path / "model.safetensors") for folder in (alone, pair)))
    stages = [json.loads((folder / "summary.json").read_text())["stages"] for folder in (alone, pair)]
    for expected, stage in zip(*stages, strict=True):
        assert stage["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    for row, other in zip(rows(alone), rows(pair), strict=True):
        assert other == pytest.approx(row, abs=1e-6)


LOOK = """
import json, os, sys
from kleiber.training.lit import LitLM
from kleiber.launch.main import main
step = LitLM.training_step
def look(self, batch, index):
    step(self, batch, index)
    state = self.optimizers(use_pl_optimizer=False).state
    told = {n: [p.numel(), p.to_local().numel(), state[p]["exp_avg"].to_local().numel()]
            for n, p in self.model.named_parameters()}
    with open(sys.argv[1] + os.environ["RANK"], "w") as file:
        json.dump(told, file)
LitLM.training_step = look
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_each_rank_holds_its_share_alone(cache_dir, tmp_path):
    (tmp_path / "look.py").write_text(LOOK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "look.py"), str(tmp_path / "rank"), *TINY, "trainer=fsdp", *PAIR, "budget.steps=2"]
    finished = subprocess.run(
        [*command, f"root={tmp_path / 'runs'}"], cwd=REPOSITORY, capture_output=True, timeout=PATIENCE
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1))
    assert first.keys() == second.keys() and len(first) > 10
    for name, (total, local, moments) in first.items():
        assert local + second[name][1] == total and moments == local
        assert local == pytest.approx(total / 2, rel=0.05), name


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_a_killed_sharded_run_ends_bit_identical(process, tmp_path):
    options = ["trainer=fsdp", *PAIR, "budget.steps=30"]
    done(process(*options, root="unbroken"))
    run = process(*options, root="killed")
    try:
        wait_for(lambda: list(tmp_path.glob("killed/*/*/stages/main/checkpoints/step-????????")))
        (pid,) = [pid for pid, line in alive(tmp_path / "killed").items()
                  if "launch.process" in line and "launch.ranks" not in line and rank_of(pid) == "1"]  # fmt: skip
        os.kill(pid, signal.SIGKILL)
        out, err = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode in (1, 75), out + err  # 75: the other rank was asked to end between two steps, and saved
    again = process(*options, root="killed")
    out, err = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0 and "resuming at step" in err, out + err
    assert ends(tmp_path / "killed") == ends(tmp_path / "unbroken")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_one_process_and_sharded_ranks_go_on_from_each_other(launch, process, interrupted, tmp_path):
    """Weights and optimizer state: a moment that was lost would show in the next step."""
    launch(*ALONE, "budget.steps=30", root="alone")
    pair = process("trainer=fsdp", *PAIR, "budget.steps=30", root="pair")
    wait_for(lambda: list(tmp_path.glob("pair/*/*/stages/main/checkpoints/step-????????")))
    pair.terminate()
    out, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 75, out + err
    (folder,) = (tmp_path / "pair").glob("*/*")
    launch(*ALONE, "budget.steps=30", f"resume={folder}", root="pair")
    assert_same(last(tmp_path / "alone"), last(tmp_path / "pair"))
    with interrupted(4):
        launch(*ALONE, "budget.steps=30", root="other", code=130)
    (folder,) = (tmp_path / "other").glob("*/*")
    other = process("trainer=fsdp", *PAIR, "budget.steps=30", f"resume={folder}", root="other")
    out, err = other.communicate(timeout=PATIENCE)
    assert other.returncode == 0 and "resuming at step" in err, out + err
    assert_same(last(tmp_path / "alone"), last(tmp_path / "other"))
