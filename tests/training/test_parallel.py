"""Ranks that divide a model give the losses, norms, scores and weights of one process, in fp64."""

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
MOE = ["model=moe", "model.mlp.num_experts=4", "model.mlp.k=2", "optimizer.weight_decay=0.1"]
MIXTURES = {
    "topk": [*MOE, "model.mlp.num_shared=1"],
    "lossfree": [
        *MOE,
        "model/router=lossfree",
        "model.mlp.balance.scope=global",
        "model.mlp.balance.coefficient=1.0",
        "batch.micro=4",
    ],
    "expert_choice": [*MOE, "model/router=expert_choice", "model.mlp.router.acknowledge_leak=true", "optimizer=lion"],
    "dropping": [*MOE, "model/mlp=dropping", "model.mlp.every=2", "trainer.checkpoint_activations=true"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of runs by name: of one process (`alone`), of two ranks (`pair`), and those that went on as the other."""
    root = tmp_path_factory.mktemp("divided")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLEIBER_CACHE", str(root / "cache"))
        patch.delenv("KLEIBER_DATA", raising=False)

        def train(name: str, *overrides: str) -> Path:
            assert main([*TINY, f"root={root / name}", *OPTIONS, *overrides, "trainer=cpu"]) == 0
            return next((root / name).glob("*/*"))

        rows_of_two = {"lossfree": ["batch.micro=8"]}
        alone = {name: train(name, *case, *rows_of_two.get(name, ())) for name, case in MIXTURES.items()}
        runs = [["trainer=expert", *OPTIONS, *case] for case in MIXTURES.values()]
        begun = killed(alone["topk"], root / "begun/run")
        folders, codes = train_in_ranks(root / "pair", 2, [*runs, [*runs[0], f"resume={begun}"]])
        assert codes == [0] * len(codes) and folders[-1] == begun
        pair = dict(zip(MIXTURES, folders, strict=False))
        back = killed(pair["topk"], root / "back/run")
        train("back", *MIXTURES["topk"], f"resume={back}")
    return {"alone": alone, "pair": pair, "onward": begun, "back": back}


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


def last(folder: Path) -> dict:
    return load_file(max(folder.glob("stages/main/checkpoints/step-????????")) / "model.safetensors")


def test_a_rank_keeps_the_memory_of_its_own_experts_alone():
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    try:
        whole, mesh = torch.nn.Parameter(torch.randn(8, 3, 2)), init_device_mesh("cpu", (4,))
        share = divide(whole, mesh).to_local()
        assert torch.equal(share, whole[4:6]) and share.untyped_storage().nbytes() == 2 * 3 * 2 * 4
    finally:
        dist.destroy_process_group()


def test_one_device_has_all_experts_and_no_other_rank():
    assert ExpertParallel(devices=1).strategy() == "auto"
    assert isinstance(ExpertParallel(devices=2).strategy(), ExpertStrategy)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_divided_experts_give_the_numbers_of_one_process(trained, name):
    alone, pair = trained["alone"][name], trained["pair"][name]
    expected, logged = rows(alone), rows(pair)
    assert len(expected) == len(logged) >= 4
    for row, other in zip(expected, logged, strict=True):
        assert other == pytest.approx(row, abs=1e-9)
    assert {"stability/gradient/layer 1", "moe/balance/1", "moe/load/1/0"} <= set().union(*logged)
    assert scores(pair) == pytest.approx(scores(alone), abs=1e-9)
    assert_same(last(alone), last(pair))


@pytest.mark.slow
def test_divided_experts_and_one_process_go_on_from_each_other(trained):
    """Weights and optimizer state: a moment that was lost would show in the next step."""
    expected = last(trained["alone"]["topk"])
    for folder in (trained["onward"], trained["back"]):
        assert max((folder / "stages/main/checkpoints").glob("step-????????")).name == "step-00000004"
        assert_same(expected, last(folder))
