"""What kleiber uses of Lightning, Hydra and PyTorch that may move with a new version, which fails here by name.

Each entry is a name, what it must still have, and the module of kleiber to change when it moved.
"""

import importlib
import inspect
import tomllib

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from small_run import REPOSITORY

LIGHTNING, STEPS, LOADER = "training/lightning.py", "counts optimizer steps", "config/loader.py"
PARAMETERS = {  # by function: the parameters that are given or overridden
    "lightning.pytorch.profilers.PassThroughProfiler.profile": (["action_name"], LIGHTNING),
    "lightning.pytorch.strategies.ModelParallelStrategy.__init__": (
        ["data_parallel_size", "tensor_parallel_size", "save_distributed_checkpoint", "timeout"],
        "training/fsdp.py",
    ),
    "lightning.pytorch.Trainer.__init__": (
        ["enable_autolog_hparams", "enable_model_summary", "num_sanity_val_steps", "plugins"],
        LIGHTNING,
    ),
    "hydra._internal.config_loader_impl.ConfigLoaderImpl._load_configuration_impl": (
        ["config_name", "overrides", "run_mode", "validate_sweep_overrides"], LOADER
    ),
    "hydra._internal.config_loader_impl.get_overrides_dirname": (["overrides", "exclude_keys"], LOADER),
    "hydra._internal.config_repository.CachingConfigRepository.__init__": (["delegate"], LOADER),
    "hydra._internal.defaults_list._create_interpolation_map": (["overrides"], "tests/conftest.py"),
    "hydra._internal.utils.create_config_search_path": (["search_path_dir"], "config/compose.py"),
    "hydra._internal.utils.get_args_parser": ([], "launch/command_line.py"),
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper.__init__": (["max_batch_size"], "hydra_plugins"),
    "torch.optim._muon._zeropower_via_newtonschulz": (["grad", "ns_coefficients"], "optimizers/muon.py"),
    "torch.distributed._functional_collectives.all_to_all_single_autograd": (
        ["self", "output_split_sizes", "input_split_sizes", "group"], "nn/dispatch.py"
    ),
    "torch.distributed.fsdp.fully_shard": (["module", "mesh", "reshard_after_forward"], "nn/sharded_model.py"),
    "torch.nn.modules.module.register_module_module_registration_hook": (["hook"], "nn/sharded_model.py"),
    "torch.cpu._is_amx_tile_supported": ([], "training/trainer.py"),
}  # fmt: skip
ATTRIBUTES = {  # by object: the attributes that are read or set
    "torch._dynamo.config": (["recompile_limit", "accumulated_recompile_limit"], "training/trainer.py"),
    "torch": (
        [f"_foreach_{name}" for name in ("add_", "addcdiv_", "lerp", "lerp_", "mul_", "norm", "sign_", "sub")],
        "*",
    ),
    "torch.nn.Module": (["register_module", "_apply"], "nn/lora.py"),
}


def find(path: str) -> object:
    """The object of a dotted path, of a module or within one."""
    parts = path.split(".")
    for stop in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:stop]))
        except ImportError:
            continue
        for part in parts[stop:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"{path} is gone")


@pytest.mark.parametrize("path", PARAMETERS)
def test_a_function_has_the_parameters_that_are_given(path):
    names, user = PARAMETERS[path]
    assert set(names) <= set(inspect.signature(find(path)).parameters), f"{path} changed: see {user}"


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_an_object_has_the_attributes_that_are_used(path):
    names, user = ATTRIBUTES[path]
    missing = [name for name in names if not hasattr(find(path), name)]
    assert missing == [], f"{path} changed: see {user}"


def test_lightning_counts_steps_where_they_are_set():
    from kleiber.training.lightning import UNUSED, Trainer, count_skipped_step

    trainer = Trainer(max_steps=3, logger=False, accelerator="cpu", **UNUSED)
    assert trainer.fit_loop.epoch_loop.max_steps == 3
    count_skipped_step(trainer)
    assert trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed == 1, LIGHTNING


def test_a_module_keeps_its_tensors_in_the_dictionaries_that_are_changed():
    module = torch.nn.Linear(1, 1)
    assert module._parameters["weight"] is module.weight and isinstance(module._buffers, dict)
    assert isinstance(module._modules, dict) and isinstance(module._state_dict_pre_hooks, dict)


def test_the_range_of_each_of_these_packages_has_an_end():
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("torch", "lightning", "hydra-core"):
        (line,) = [line for line in needed if line.startswith(f"{name}>")]
        assert "<" in line, line


def test_the_lowest_versions_that_are_tested_are_those_that_are_asked_for():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    asked = {entry.name: entry.specifier for line in lines if (entry := Requirement(line)).name != "kleiber"}
    tested = [Requirement(line) for line in (REPOSITORY / ".ci/lowest.txt").read_text().splitlines() if line[0] != "#"]
    for entry in tested:
        (version,) = (part.version for part in entry.specifier)
        (lowest,) = (part.version for part in asked[entry.name] if part.operator == ">=")
        assert Version(version) == Version(lowest), entry.name
