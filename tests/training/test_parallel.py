"""Ranks that divide experts give the losses, norms, scores and weights of one process, in fp64."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from shared_ranks import train_in_ranks
from small_run import TINY
from torch.distributed.tensor import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from training.test_fsdp import assert_same
from training.test_trainer_ddp import rows as all_rows

from kleiber.launch.main import main
from kleiber.training.parallel import ExpertParallel, ExpertStrategy, divide

OPTIONS = [
    "trainer.precision=64", "model.depth=2", "model.context=64", "data.max_bytes=20000", "budget.steps=4",
    "eval.tokens=1024", "callbacks.log.every=1", "batch.micro=3", "callbacks.checkpoints.every=2",
    "callbacks.stability.every=2",
]  # fmt: skip
AVERAGED = ["callbacks=[default,ema]", "callbacks.ema.decay=0.5"]
MOE = ["model=moe", "model.mlp.num_experts=4", "model.mlp.k=2", "optimizer.weight_decay=0.1"]
MIXTURES = {
    "topk": [*MOE, *AVERAGED, "model.mlp.num_shared=1", "optimizer=muon"],
    "lossfree": [
        *MOE,
        "model/router=lossfree",
        "model.mlp.balance.scope=global",
        "model.mlp.balance.coefficient=1.0",
        "batch.micro=4",
    ],
    "expert_choice": [*MOE, "model/router=expert_choice", "model.mlp.router.acknowledge_leak=true", "optimizer=lion"],
    "capacity": [
        *MOE,
        "model.mlp.capacity_factor=1.25",
        "model.mlp.every=2",
        "trainer.checkpoint_activations=true",
        "adapter=freeze",
        "adapter.freeze=[experts]",
    ],
}
RESUMED = ("topk",)


def train_all(root: Path) -> dict[str, dict[str, Path]]:
    """Folders of runs by name: of one process (`alone`), of two ranks (`pair`), and those that went on as the other."""

    def train(name: str, *overrides: str) -> Path:
        assert main([*TINY, f"root={root / name}", *OPTIONS, *overrides, "trainer=cpu"]) == 0
        return next((root / name).glob("*/*"))

    rows_of_two = {"lossfree": ["batch.micro=8"]}
    alone = {name: train(name, *case, *rows_of_two.get(name, ())) for name, case in MIXTURES.items()}
    runs = {name: ["trainer=expert", *OPTIONS, *case] for name, case in MIXTURES.items()}
    onward = {name: killed(alone[name], root / f"onward-{name}/run") for name in RESUMED}
    resumed = [[*runs[name], f"resume={folder}"] for name, folder in onward.items()]
    folders, codes = train_in_ranks(root / "pair", 2, [*runs.values(), *resumed])
    assert codes == [0] * len(codes) and folders[len(runs) :] == list(onward.values())
    pair = dict(zip(runs, folders, strict=False))
    four = {name: killed(pair[name], root / f"four-{name}/run") for name in RESUMED}
    resumed = [[*runs[name], "trainer.devices=4", f"resume={folder}"] for name, folder in four.items()]
    assert train_in_ranks(root / "four", 4, resumed) == (list(four.values()), [0] * len(four))
    back = {name: killed(pair[name], root / f"back-{name}/run") for name in RESUMED}
    for name, folder in back.items():
        train(f"back-{name}", *MIXTURES[name], f"resume={folder}")
    return {"alone": alone, "pair": pair, "onward": onward, "back": back, "four": four}


def killed(folder: Path, other: Path) -> Path:
    """A copy of a finished run as it would be if it had been killed after its second step."""
    shutil.copytree(folder, other)
    (other / "summary.json").unlink()
    shutil.rmtree(other / "stages/main/checkpoints/step-00000004")
    return other


INSIDE = ("stability/attention", "stability/activation", "stability/log_z")  # of the first row of each rank


def rows(folder: Path) -> list[dict]:
    return [{name: v for name, v in row.items() if not name.startswith(INSIDE)} for row in all_rows(folder)]


def scores(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "summary.json").read_text())["stages"][0]["metrics"]
    return {name: value for name, value in metrics.items() if name != "stability/attention_logit"}


def last(folder: Path, name: str = "checkpoints") -> dict:
    return load_file(max(folder.glob(f"stages/main/{name}/step-????????")) / "model.safetensors")


def test_a_rank_keeps_its_own_share_and_no_memory_of_the_others():
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        whole, mesh = torch.nn.Parameter(torch.randn(8, 3)), init_device_mesh("cpu", (4,))
        share = divide(whole, mesh)
        assert share.shape == whole.shape and torch.equal(share.to_local(), whole[4:6])
        assert share.to_local().untyped_storage().nbytes() == 2 * 3 * 4
    finally:
        dist.destroy_process_group()


def test_one_device_has_the_whole_model_and_no_other_rank():
    assert ExpertParallel(devices=1).strategy() == "auto"
    assert isinstance(ExpertParallel(devices=2).strategy(), ExpertStrategy)


@pytest.mark.slow
@pytest.mark.long
def test_a_divided_model_gives_the_numbers_of_one_process_and_ranks_go_on_from_each_other(
    cache_dir, tmp_path, subtests
):
    """One test, since the ranks start once for all runs."""
    trained = train_all(tmp_path)
    for name in MIXTURES:
        with subtests.test(name):
            alone, pair = trained["alone"][name], trained["pair"][name]
            assert_same_numbers(alone, pair)
            if AVERAGED[0] in MIXTURES[name]:
                assert_same(last(alone, "ema"), last(pair, "ema"))
    for way, name in itertools.product(("onward", "back", "four"), RESUMED):
        with subtests.test(f"{name} {way}"):
            folder = trained[way][name]
            assert max((folder / "stages/main/checkpoints").glob("step-????????")).name == "step-00000004"
            assert_same(last(trained["alone"][name]), last(folder))  # a lost moment would show in the next step


def assert_same_numbers(alone: Path, pair: Path) -> None:
    expected, logged = rows(alone), rows(pair)
    assert len(expected) == len(logged) >= 4
    for row, other in zip(expected, logged, strict=True):
        assert other == pytest.approx(row, abs=1e-9)
    assert {"train/loss", "train/grad_norm", "stability/gradient/layer 1"} <= set().union(*logged)
    assert scores(pair) == pytest.approx(scores(alone), abs=1e-9)
    assert_same(last(alone), last(pair))
