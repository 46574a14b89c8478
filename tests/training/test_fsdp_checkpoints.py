"""Checkpoints that two sharded ranks write in parallel, read by one process and by four ranks."""

import io
import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import PATIENCE, wait_for
from safetensors.torch import load_file
from shared_ranks import fork_ranks
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.device_mesh import init_device_mesh
from training.test_fsdp import ALONE, PAIR, assert_same, last
from training.test_trainer_ddp import in_forked_ranks

import kleiber
from kleiber.launch import ranks
from kleiber.launch.cli import main as command
from kleiber.launch.process import main as run_process
from kleiber.nn.sharded_model import shard, sharded_blocks
from kleiber.nn.sharding import full_tensor
from kleiber.records.folder import read_config
from kleiber.runs.open import new_model
from kleiber.training import checkpoint
from kleiber.training.snapshot import copy_tensors

RUN = ["optimizer=muon", "callbacks=[default,ema]", "callbacks.ema.decay=0.5", "budget.steps=24"]
SHARDED = ["trainer=fsdp", *PAIR, *RUN, "callbacks.checkpoints.sharded=true"]


@pytest.fixture
def interrupted_pair(process, tmp_path) -> Path:
    """The folder of a run that was interrupted after a checkpoint of two ranks."""
    pair = process(*SHARDED, root="pair")
    wait_for(lambda: list(tmp_path.glob("pair/*/*/stages/main/checkpoints/step-????????")))
    pair.terminate()
    out, err = pair.communicate(timeout=PATIENCE)
    assert pair.returncode == 75, out + err
    (folder,) = (tmp_path / "pair").glob("*/*")
    return folder


def in_ranks(count: int, run: Callable[[], None]) -> None:
    """Calls `run` in `count` forked ranks of a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            code = 99
            try:
                dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
                run()
                code = 0
            finally:
                os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count


def assert_equal_states(state: dict, other: dict) -> None:
    assert state.keys() == other.keys()
    for key, value in state.items():
        if isinstance(value, dict):
            assert_equal_states(value, other[key])
        else:
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.process
def test_four_ranks_and_one_process_go_on_from_what_two_have_saved(interrupted_pair, launch, process, tmp_path):
    files = max(interrupted_pair.glob("stages/main/checkpoints/step-????????"))
    assert len(list((files / "weights").iterdir())) == len(list((files / "state").iterdir())) == 2
    saved, config = checkpoint.read(files), read_config(interrupted_pair)
    whole = new_model(config, 272).double()
    saved.load_model(whole)
    state = saved.load_state()

    def compare() -> None:
        """Every rank reads its rows; gathered, they are the bits that one process reads."""
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        with sharded_blocks(mesh):
            model = new_model(config, 272)
        shard(model.double(), mesh)
        saved.load_model(model)
        for name, value in model.named_parameters():
            assert torch.equal(full_tensor(value.detach()), whole.get_parameter(name)), name
        assert_equal_states(copy_tensors(saved.load_state(model)), state)

    in_ranks(4, compare)
    launch(*ALONE, *RUN, root="alone")
    for name in ("one", "four"):
        shutil.copytree(interrupted_pair, tmp_path / name / "runs" / interrupted_pair.name)
    (one,), (four,) = ((tmp_path / name).glob("*/*") for name in ("one", "four"))
    launch(*ALONE, *RUN, f"resume={one}", root="one")
    assert_same(last(tmp_path / "alone"), last(tmp_path / "one"))
    rest = process(*SHARDED, "trainer.devices=4", f"resume={four}", root="four")
    out, err = rest.communicate(timeout=PATIENCE)
    assert rest.returncode == 0 and "resuming at step" in err, out + err
    final = checkpoint.latest_of(four / "stages/main/checkpoints")
    assert len(list((final.path / "weights").iterdir())) == 4
    final.load_model(whole)
    for name, value in last(tmp_path / "alone").items():
        assert (whole.state_dict()[name] - value).abs().max() < 1e-9
    assert_every_reader_reads(four, launch, tmp_path)


def assert_every_reader_reads(run: Path, launch: Callable[..., Path], tmp_path: Path) -> None:
    """The Python API, eval, export, and a run that starts from the run."""
    assert kleiber.open(run).generate("the ", tokens=4, temperature=0)
    assert command(["eval", str(run), "--evals", "perplexity", "--json", str(tmp_path / "scores.json")]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())["evals"]["perplexity"]
    assert next(iter(scores.values()))["loss"]["value"] > 0
    assert command(["export", str(run), str(tmp_path / "exported")]) == 0
    assert load_file(tmp_path / "exported/model.safetensors")
    following = launch(*ALONE, "init=checkpoint", f"init.path={run}", "budget.steps=2", root="next")
    assert json.loads((following / "summary.json").read_text())["status"] == "finished"


ENDED = 77  # the exit code of a rank that ends within a file


class HalfWriter(io.BufferedWriter):
    """A file of which half is written when the process ends."""

    def write(self, content: bytes) -> int:
        super().write(content[: len(content) // 2])
        self.flush()
        os._exit(ENDED)


def ranks_of_which_ends(number: int, folder: Path) -> int:
    """Trains the run of a folder in two ranks, of which one ends after half of its file of weights of step 6."""
    create = FileSystem.create_stream

    def create_stream(system: FileSystem, path: Path, mode: str) -> AbstractContextManager[io.IOBase]:
        place = Path(path)
        if place.parent.name == "weights" and place.parts[-3].startswith("step-00000006"):
            return HalfWriter(io.FileIO(place, "w"))
        return create(system, path, mode)

    def run(rank: int) -> int:
        if rank == number:
            FileSystem.create_stream = create_stream
        return run_process([str(folder)])

    return fork_ranks(2, run)


@pytest.mark.slow
@pytest.mark.long
def test_a_rank_that_ends_within_its_file_leaves_the_checkpoint_before(launch, monkeypatch, capfd):
    """The same command goes on from there, and ends with the bits of the run that was not broken."""
    run = [*SHARDED, "budget.steps=8"]
    monkeypatch.setattr(ranks, "run_fresh", in_forked_ranks)
    whole = checkpoint.latest_of(launch(*run, root="whole") / "stages/main/checkpoints")
    for rank in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "run_fresh", lambda folder, _, rank=rank: ranks_of_which_ends(rank, folder))
            broken = launch(*run, root=f"broken-{rank}", code=ENDED)
        folder = broken / "stages/main/checkpoints"
        assert [path.name for path in checkpoint.steps(folder)] == ["step-00000004", "step-00000002"]
        capfd.readouterr()
        assert launch(*run, root=f"broken-{rank}") == broken
        assert "resuming at step 4 from" in capfd.readouterr().err
        final = checkpoint.latest_of(folder)
        files = whole.meta["sha256"].keys() - {"state.pt"}
        assert len(files) == 4 and final.step == whole.step == 8
        for file in files:  # their headers have entries in a random order
            assert_equal_states(load_file(final.path / file), load_file(whole.path / file))
