"""Classes of the reader's own packages: allowed by the environment alone, trained with, and opened again."""

import json
import sys

import pytest
from small_run import TINY

from kleiber.config.check import check_division
from kleiber.config.compose import Composer, find_choice, resolve_config
from kleiber.config.cross_checks import check_compatibility
from kleiber.config.errors import ConfigError
from kleiber.config.extensions import (
    VARIABLE,
    extension_folders,
    extension_packages,
    extension_prefixes,
    import_function,
    import_offer,
    offers,
)
from kleiber.config.model_size import size, width_of
from kleiber.config.stage_checks import check_stage
from kleiber.config.targets import class_attribute, signature
from kleiber.launch.main import main

LAB = '''
from json import loads
from kleiber.adapters.lora import LoRA
from kleiber.data.builtin import Builtin
from kleiber.data.preference import Preference
from kleiber.models.hf import HFModel
from kleiber.nn.delta import GatedDeltaNet
from kleiber.nn.latent import LatentAttention
from kleiber.nn.routers import GroupLimited
from kleiber.nn.routers.hash import Hash
from kleiber.nn.routers.topk import TopK
from kleiber.objectives.clm import CLM
from kleiber.objectives.mlm import MLM
from kleiber.retention import EWC, L2SP, WiSE
from kleiber.training.fsdp import FSDP
from kleiber.training.parallel import ExpertParallel

class Scaled(CLM):
    """The loss of next tokens, scaled."""
    learning_rate_factor = 0.5

    def __init__(self, *args, factor: float = 2.0, **options):
        super().__init__(*args, **options)
        self.factor = factor

class Wide(TopK):
    """A router with three matrices."""
    matrices = 3

class Narrow(TopK):
    pass

class ByHash(Hash):
    pass

class Near(L2SP):
    pass

class Fisher(EWC):
    pass

class Mean(WiSE):
    pass

class Grouped(GroupLimited):
    pass

class Recurrent(GatedDeltaNet):
    pass

class Compressed(LatentAttention):
    pass

class Updates(LoRA):
    pass

class Pairs(Preference):
    pass

class Weighed(Builtin):
    weighs_tokens = True

class Hidden(MLM):
    pass

class Imported(HFModel):
    pass

class Divided(ExpertParallel):
    pass

class Sharded(FSDP):
    pass

class Warmer:
    def __init__(self, steps: int = 3) -> None:
        self.steps = steps

def run(command: str) -> None:
    raise AssertionError(command)
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """The package `some_lab`, which the environment allows."""
    (tmp_path / "packages" / "some_lab").mkdir(parents=True)
    (tmp_path / "packages" / "some_lab" / "__init__.py").write_text(LAB)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "some_lab", raising=False)
    monkeypatch.setenv(VARIABLE, "email, some_lab")


def test_a_class_of_an_allowed_package_has_a_signature_and_attributes(lab):
    assert signature("some_lab.Warmer").parameters["steps"].default == 3
    assert class_attribute("some_lab.Scaled", "learning_rate_factor") == 0.5
    assert class_attribute("some_lab.Scaled", "metric") == class_attribute("kleiber.objectives.CLM", "metric")


MOE, STREAM = (
    "model=moe model.mlp.router._target_=some_lab.",
    "data=text data.path=x data.streaming=true",
)
CONTRADICTIONS = {
    "objective._target_=some_lab.Scaled model=bert": ("objective=scaled", "model.causal=false"),
    f"{MOE}Wide model.mlp.k=1": ("router Wide", "model.mlp.k=1"),
    f"{MOE}ByHash model.mlp.capacity_factor=1.25": ("ByHash", "model.mlp.capacity_factor=1.25"),
    f"{MOE}Warmer": ("model.mlp.router._target_=some_lab.Warmer", "kleiber.types.model.Router"),
    f"{STREAM} +retention.l2sp._target_=some_lab.Fisher": ("retention=[l2sp]", "data.streaming=true"),
    "privacy=dp_sgd +retention.l2sp._target_=some_lab.Fisher": ("retention=[l2sp]", "privacy=dp_sgd"),
    f"{MOE}Grouped +model.mlp.router.groups=3 +model.mlp.router.limit=2": ("model.mlp.router.groups=3", "8 experts"),
    "model.attention._target_=some_lab.Recurrent model=bert": ("some_lab.Recurrent", "model.causal=false"),
    "model.attention._target_=some_lab.Recurrent data=instruct data.path=x": ("data.pack=true", "some_lab.Recurrent"),
    "model.attention._target_=some_lab.Recurrent model.positions=alibi": ("remove model.positions=alibi",),
    "model.attention._target_=some_lab.Compressed model.width=36": ("some_lab.Compressed", "a multiple of 4 channels"),
    "+retention.m._target_=some_lab.Near +retention.m.strength=50 optimizer.lr=0.1": ("retention.m.strength=50",),
    "stages=docs_then_code +retention.m._target_=some_lab.Mean +retention.m.alphas=[0,0]": (
        "retention.m.alphas=[0, 0]",
    ),
    "objective=dpo data=preference data._target_=some_lab.Pairs data.path=x batch.tokens=768": ("1.5 pairs", "1024"),
    "model=bert objective=mlm objective._target_=some_lab.Hidden data._target_=some_lab.Weighed": ("data=reweighted",),
    "model=hf model._target_=some_lab.Imported model.path=gpt2 data=instruct data.path=x": (
        "data.pack=true",
        "model=hf",
    ),
}
CONSISTENT = [
    f"{MOE}Wide model.mlp.capacity_factor=1.25", f"{STREAM} +retention.mine._target_=some_lab.Near",
    "objective._target_=some_lab.Scaled model.future=1",
    "objective=dpo objective.reference=adapter_off data=preference data.path=x +adapter._target_=some_lab.Updates",
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "values"), CONTRADICTIONS.items())
def test_an_error_names_both_values_that_contradict_each_other(lab, overrides, values):
    with pytest.raises(ConfigError) as error:
        check_compatibility(resolve_config(Composer().compose(overrides.split()))[0])
    assert [value for value in values if value not in str(error.value)] == []


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("trainer=expert trainer._target_=some_lab.Divided", "model=moe"),
        ("trainer=fsdp trainer._target_=some_lab.Sharded trainer.devices=1", "trainer.devices=1"),
        ("trainer=expert trainer._target_=some_lab.Divided model=moe +adapter._target_=some_lab.Updates", "adapter="),
    ],
)
def test_devices_that_a_trainer_of_the_package_cannot_use_are_refused(lab, overrides, key):
    with pytest.raises(ConfigError, match=key):
        check_division(resolve_config(Composer().compose(overrides.split()))[0])


def test_an_adapter_of_the_package_needs_trained_weights(lab):
    with pytest.raises(ConfigError, match="adapter=updates"):
        check_stage(resolve_config(Composer().compose(["+adapter._target_=some_lab.Updates"]))[0])


@pytest.mark.parametrize("overrides", CONSISTENT)
def test_values_that_a_class_of_the_package_allows_pass(lab, overrides):
    words: list[str] = overrides.split()
    check_compatibility(resolve_config(Composer().compose(words))[0])


def test_the_matrices_of_a_router_of_the_package_are_counted(lab):
    nodes = [resolve_config(Composer().compose(f"{MOE}{name}".split()))[0]["model"] for name in ("Wide", "Narrow")]
    matrix = nodes[0]["mlp"]["num_experts"] * width_of(nodes[0])
    assert size(nodes[0], 272).total - size(nodes[1], 272).total == 2 * nodes[0]["depth"] * matrix


@pytest.mark.parametrize("name", ["run", "loads", "L2SP.x", "Nobody", "sub.Nobody"])
def test_functions_and_names_that_are_not_there_are_refused(lab, name):
    with pytest.raises(ConfigError, match=f"some_lab.{name}"):
        signature(f"some_lab.{name}")


@pytest.mark.parametrize("value", ["", "email", "some"])
def test_nothing_else_of_the_package_is_allowed_or_imported(lab, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ConfigError, match=VARIABLE):
        signature("some_lab.Warmer")
    with pytest.raises(ConfigError, match=VARIABLE):
        class_attribute("some_lab.Warmer", "steps")
    with pytest.raises(ConfigError, match=VARIABLE):
        import_function("some_lab.run", "law some_lab.run")


def test_functions_are_imported_where_the_caller_asks_for_one(lab):
    assert import_function("some_lab.run", "law some_lab.run").__name__ == "run"
    for name in ("some_lab.Warmer", "some_lab.loads", "some_lab.nothing"):
        with pytest.raises(ConfigError, match=name):
            import_function(name, f"law {name}")


@pytest.fixture
def conf(lab, tmp_path):
    """The folder conf/ of `some_lab`, with a schedule and another file for kleiber's own choice `wsd`."""
    folder = tmp_path / "packages" / "some_lab" / "conf"
    (folder / "schedule").mkdir(parents=True)
    (folder / "schedule" / "saw_tooth.yaml").write_text("_target_: kleiber.optimizers.WSD\ndecay: 0.5\n")
    (folder / "schedule" / "wsd.yaml").write_text("_target_: kleiber.optimizers.WSD\ndecay: 0.7\n")
    return folder


def test_the_folder_of_a_package_adds_choices_and_replaces_none_of_kleiber(conf):
    assert extension_folders()[0] == conf and find_choice("schedule", "saw_tooth") == conf / "schedule/saw_tooth.yaml"
    composer = Composer()
    assert {"saw_tooth", "wsd", "cosine"} <= set(composer.choices("schedule"))
    assert composer.compose(["schedule=saw_tooth"]).schedule.decay == 0.5
    assert composer.compose(["schedule=wsd"]).schedule.decay == 0.2
    with pytest.raises(ConfigError, match="'saw_tooth'"):
        composer.compose(["schedule=saw_tooh"])


def test_a_package_that_is_not_there_is_refused_by_its_name(lab, monkeypatch):
    for name in ("sme_lab", "sme_lab.sub", "some_lab.sub"):
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(ConfigError, match=name):
            Composer()


def test_a_package_in_the_working_folder_is_imported_from_there_after_all_others(tmp_path, monkeypatch):
    for name in ("lab_beside", "json"):
        (tmp_path / f"{name}.py").write_text("class Here:\n    pass\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "lab_beside,json")
    assert signature("lab_beside.Here").name == "Here"
    assert sys.path[-1] == str(tmp_path) and sys.path.count(str(tmp_path)) == 1
    with pytest.raises(ConfigError, match="json has no Here"):
        signature("json.Here")


def test_an_installed_package_with_an_entry_point_is_allowed_but_not_in_the_working_folder(tmp_path, monkeypatch):
    for place in ("site", "work"):
        info = tmp_path / place / f"{place}_lab-1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {place}_lab\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[kleiber.extensions]\nany = {place}_lab\n")
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "work"), "", *sys.path, str(tmp_path / "site")])
    monkeypatch.chdir(tmp_path / "work")
    own = ("kleiber_topics",)
    assert extension_packages() == (*own, "site_lab")
    monkeypatch.chdir(tmp_path)
    assert extension_packages() == ("work_lab", *own, "site_lab")


def test_a_package_and_those_in_it_offer_by_name_and_another_name_is_refused_with_these(tmp_path, monkeypatch):
    for place, text in {
        "lab/__init__.py": "LOOKUPS = {'near': 'lookups.Near'}",
        "lab/lookups.py": "class Near:\n    pass\n",
        "lab/inner/__init__.py": "LOOKUPS = {'far': 'lookups.FAR'}",
        "lab/inner/lookups.py": "FAR = 3\n",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, "lab")
    assert {"near": "lab.lookups.Near", "far": "lab.inner.lookups.FAR"}.items() <= offers("LOOKUPS").items()
    assert "lab.lookups" not in sys.modules
    assert import_offer("LOOKUPS", "near", "retrieval=near").__name__ == "Near"
    with pytest.raises(ConfigError, match=r"retrieval=nea must be .*\bnear\b.*\bfar\b"):
        import_offer("LOOKUPS", "nea", "retrieval=nea")
    with pytest.raises(ConfigError, match="retrieval=far"):
        import_offer("LOOKUPS", "far", "retrieval=far")


def test_what_is_no_name_of_a_package_is_refused_by_its_value(monkeypatch):
    monkeypatch.setenv(VARIABLE, "fine, ../evil")
    with pytest.raises(ConfigError, match="evil"):
        extension_prefixes()


@pytest.mark.slow
def test_a_run_with_an_own_objective_opens_only_for_a_reader_who_allows_it(lab, tmp_path, monkeypatch, capsys):
    own = ["objective._target_=some_lab.Scaled", "objective.factor=2.0", f"root={tmp_path}"]
    assert main([*TINY, *own]) == 0
    (folder,) = (tmp_path / "runs").glob("*/")
    assert json.loads((folder / "summary.json").read_text())["stages"][0]["lr"] == 0.01
    again = [*TINY, "init=checkpoint", f"init.path={folder}", f"root={tmp_path}", "name=again"]
    assert main(again) == 0
    monkeypatch.delenv(VARIABLE)
    capsys.readouterr()
    assert main([*again, "seed=1"]) == 2
    assert "some_lab.Scaled" in capsys.readouterr().err
