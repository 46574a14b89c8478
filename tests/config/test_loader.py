"""Files are read and choices merged once, and every composed config equals that of Hydra's own loader."""

import os

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from kleiber.config.compose import Composer, conf_dir
from kleiber.config.loader import LIMIT, parse_overrides

HEAD = "defaults: [_self_, {optimizer: adamw}, override hydra/launcher: kleiber, override hydra/sweeper: kleiber]\n"
COMMANDS = (
    ["model=moe", "++seed=1"],
    ["model=moe", "++seed=2", "++model.depth=3"],
    ["++seed=1", "++seed=2", "++seed=1", "hydra.verbose=true"],
    ["~adapter", "~callbacks.samples", "++batch={tokens: 512}", "++optimizer.betas=[0.8,0.9]"],
    ["study=sparsity", "++stages.branches=[[1M,2M]]", "++model.context='${batch.tokens}'"],
    ["retention=[ewc,replay]", "++seed=0,1"],
)


@pytest.fixture(scope="module")
def loader():
    return Composer().loader


def plain(loader, overrides):
    cfg = loader.load_configuration("train", overrides, RunMode.MULTIRUN)
    return OmegaConf.to_container(cfg, resolve=False)


@pytest.mark.slow
def test_configs_equal_those_of_hydra_also_the_second_time(loader):
    hydra = ConfigLoaderImpl(loader.config_search_path)
    for overrides in COMMANDS:
        expected = plain(hydra, overrides)
        assert plain(loader, overrides) == expected, overrides
        assert plain(loader, overrides) == expected, f"{overrides}, from memory"


def test_a_config_may_be_changed_without_changing_the_next(loader):
    first = loader.load_configuration("train", ["model=moe"], RunMode.RUN)
    first.model.depth, first.hydra.runtime.choices.model = 99, "none"
    second = loader.load_configuration("train", ["model=moe"], RunMode.RUN)
    assert second.model.depth != 99 and second.hydra.runtime.choices.model == "moe"


@pytest.mark.parametrize("overrides", [["model=none"], ["trainer=gpu,cpu"], ["seed.x=1"], ["~nothing"]])
def test_errors_are_those_of_hydra(loader, overrides):
    hydra, messages = ConfigLoaderImpl(loader.config_search_path), []
    for each in (hydra, loader, loader):
        with pytest.raises(HydraException) as error:
            each.load_configuration("train", overrides, RunMode.RUN)
        messages.append(str(error.value))
    assert messages[0] == messages[1] == messages[2]


def test_values_share_the_merged_files_of_their_choices_and_only_so_many_are_kept(loader, monkeypatch):
    merged = loader.memory.merged
    plain(loader, ["model=lstm"])
    before = len(merged)
    for seed in range(3):
        plain(loader, ["model=lstm", f"seed={seed}"])
    assert len(merged) == before <= LIMIT
    monkeypatch.setattr("kleiber.config.loader.LIMIT", before)
    oldest = next(iter(merged))
    plain(loader, ["model=bert"])
    assert len(merged) == before and oldest not in merged


def test_what_was_read_is_kept_while_another_folder_is_used(tmp_path, monkeypatch):
    before = Composer().loader.memory
    (tmp_path / "train.yaml").write_text("seed: 0\n")
    with monkeypatch.context() as patch:
        patch.setattr("kleiber.config.compose.conf_dir", lambda: tmp_path)
        assert Composer().loader.memory is not before
    assert Composer().loader.memory is before


def test_another_composer_remembers_and_sees_a_file_that_has_changed(tmp_path, monkeypatch):
    for name in ("train.yaml", "optimizer/adamw.yaml", "model/gpt.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((conf_dir() / name).read_bytes())
    (tmp_path / "train.yaml").write_text(HEAD + "seed: 0\n")
    monkeypatch.setattr("kleiber.config.compose.conf_dir", lambda: tmp_path)
    first = Composer()
    assert first.compose([]).seed == 0 and Composer().loader.memory is first.loader.memory
    (tmp_path / "train.yaml").write_text(HEAD + "seed: 11\n")
    (tmp_path / "optimizer" / "own.yaml").write_text("lr: 7\n")
    assert Composer().compose(["optimizer=own"]).optimizer.lr == 7
    assert Composer().compose([]).seed == 11


@pytest.mark.slow
def test_a_folder_of_the_user_is_read_anew_by_each_composer(tmp_path):
    (tmp_path / "schedule").mkdir()
    for rate in (1, 2):
        (tmp_path / "schedule" / "own.yaml").write_text(f"rate: {rate}\n")
        composer = Composer(config_dir=str(tmp_path))
        assert composer.compose(["schedule=own"]).schedule.rate == rate
        assert composer.loader.memory is not Composer().loader.memory


def test_the_description_is_of_this_process_and_of_all_overrides(loader, tmp_path, monkeypatch):
    plain(loader, ["model=moe"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLACE", "here")
    cfg = loader.load_configuration(
        "train", ["hydra.mode=RUN", "++seed=3", "model=moe", "hydra.job.env_copy=[PLACE]"], RunMode.RUN
    )
    assert cfg.hydra.runtime.cwd == os.getcwd() == str(tmp_path) and cfg.hydra.job.env_set.PLACE == "here"
    assert list(cfg.hydra.overrides.task) == ["++seed=3", "model=moe"] and len(cfg.hydra.overrides.hydra) == 2
    assert cfg.hydra.job.override_dirname == "++seed=3,model=moe"


def test_overrides_are_parsed_once_and_sweeps_with_the_choices_of_the_loader(loader):
    (first,), (second,) = parse_overrides(["seed=5"], loader), parse_overrides(["seed=5"], loader)
    assert first is second
    (sweep,) = parse_overrides(["model=glob(l*)"], loader)
    assert list(sweep.sweep_iterator()) == ["lstm"]
