"""A command line becomes a config: groups and choices are checked, and budget keys replace those of files."""

import pytest
from hydra.types import RunMode

from kleiber.config.check import NODES, check
from kleiber.config.compose import Composer, conf_dir, find_choice, list_choices, resolve_config
from kleiber.config.errors import ConfigError

COMPOSER = Composer()


@pytest.mark.slow
def test_a_budget_key_on_the_command_line_clears_those_of_files(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "long.yaml").write_text("# @package _global_\nbudget: {tokens: 1B}\n")
    (tmp_path / "experiment" / "two.yaml").write_text("# @package _global_\nbudget: {tokens: 1B, steps: 3}\n")
    composer = Composer(config_dir=str(tmp_path))

    def budget(*overrides):
        config, _ = resolve_config(composer.compose(list(overrides)))
        check(config)
        return {key: value for key, value in config["budget"].items() if value is not None}

    assert budget("experiment=long") == {"tokens": "1B"}
    assert budget("experiment=long", "budget.steps=5") == {"steps": 5}
    assert budget("budget.tokens=null", "budget.steps=5") == {"steps": 5}
    with pytest.raises(ConfigError, match=r"budget\.tokens=1B and budget\.steps=3"):
        budget("experiment=two")


def test_prepared_overrides_are_prepared_already():
    overrides = [
        "model=moe",
        "+model.depth=3",
        "optimizer.lr=0.1",
        "budget.steps=5",
        "~callbacks.samples",
        "adapter=null",
    ]
    prepared = COMPOSER.prepare(overrides)
    assert COMPOSER.prepare(prepared) == prepared
    assert {"model=moe", "++model.depth=3", "++budget.steps=5", "++budget.tokens=null"} <= set(prepared)
    assert not any("adapter" in line for line in prepared), "Hydra cannot choose null, and null is the default"


def test_groups_and_choices_are_those_of_the_folder():
    groups = set(COMPOSER.groups())
    assert {"model", "model/mlp", "model/router", "data", "study"} <= groups
    assert "hydra" not in groups and "data/glue" not in groups
    assert "glue/sst2" in COMPOSER.choices("data") and "mlp/moe" not in COMPOSER.choices("model")
    assert COMPOSER.choices("no_such_group") == [] and not any(c.startswith("_") for c in COMPOSER.choices("study"))


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("callbacks=[ema,null]", ["callbacks=null"]),
        ("modl=moe", ["modl", "'model'"]),
        ("data=/", ["data=labelled data.path=/"]),
        ("model=moee", ["model=moee", "'moe'"]),
        ("optimizer=torch.optim.Adam", ["torch.optim.Adam", "optimizer=adamw"]),
        ("model/mlpp=moe", ["'model/mlp'"]),
    ],
)
def test_the_error_for_a_misspelled_name_suggests_the_nearest(override, values):
    with pytest.raises(ConfigError) as caught:
        COMPOSER.compose([override])
    assert all(value in str(caught.value) for value in values), str(caught.value)


@pytest.mark.parametrize("value", ["données.txt", "a(1).txt", "my file=1.txt", "a#b;c", "été (2)/x"])
def test_a_value_that_hydra_cannot_read_is_taken_as_a_text(value):
    config, _ = resolve_config(COMPOSER.compose(["data=text", f"data.path={value}"]))
    assert config["data"]["path"] == value
    prepared = COMPOSER.prepare([f"data.path={value}"])
    assert COMPOSER.prepare(prepared) == prepared


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("foo", ["foo is not KEY=VALUE", "kleiber train --help"]),
        ("model.depth", ["model.depth is not KEY=VALUE"]),
        ("é=3", ["é=3 is not KEY=VALUE"]),
        ("data.path=é,b", ["data.path=é,b", "data.path='...'"]),
        ("seed=range(1,", ["seed=range(1,", "seed='...'"]),
    ],
)
def test_what_is_no_override_is_refused_with_its_form(override, values):
    with pytest.raises(ConfigError) as caught:
        COMPOSER.compose([override])
    assert all(value in str(caught.value) for value in values), str(caught.value)
    assert "hydra.cc" not in str(caught.value) and "Exception" not in str(caught.value)


def test_choices_of_the_user_take_precedence(tmp_path):
    (tmp_path / "schedule").mkdir()
    (tmp_path / "schedule" / "wsd.yaml").write_text("_target_: kleiber.optimizers.WSD\ndecay: 0.5\n")
    config, model = resolve_config(Composer(config_dir=str(tmp_path)).compose([]))
    assert config["schedule"]["decay"] == 0.5 and model == "gpt"
    with pytest.raises(ConfigError, match="missing"):
        Composer(config_dir=str(tmp_path / "missing"))


def test_a_resolved_config_has_every_node_and_no_hydra():
    config, _ = resolve_config(COMPOSER.compose(["callbacks=null", "logger=null"]))
    assert set(NODES) <= set(config) and "hydra" not in config
    assert config["callbacks"] == config["logger"] == {}


def test_a_sweep_is_asked_for_by_its_mode():
    assert COMPOSER.is_sweep(["hydra.mode=MULTIRUN"]) and not COMPOSER.is_sweep(["seed=1"])


def test_folders_of_the_search_path_of_hydra_add_choices_that_are_checked(tmp_path):
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "slow.yaml").write_text("_target_: kleiber.optimizers.WSD\ndecay: 0.5\n")
    composer, where = Composer(), f"hydra.searchpath=[file://{tmp_path}/mine]"
    with pytest.raises(ConfigError, match="slow"):
        composer.prepare(["schedule=slow"])
    config, _ = resolve_config(composer.compose([where, "schedule=slow"]))
    assert config["schedule"]["decay"] == 0.5 and "slow" in composer.choices("schedule")
    with pytest.raises(ConfigError, match="'slow'"):
        composer.prepare([where, "schedule=slw"])
    for place in (f"[file://{tmp_path}/nowhere]", "nowhere"):
        with pytest.raises(ConfigError, match=r"hydra\.searchpath.*nowhere"):
            composer.prepare([f"hydra.searchpath={place}"])


def test_the_root_config_of_the_user_may_set_the_search_path(tmp_path):
    (tmp_path / "mine" / "schedule").mkdir(parents=True)
    (tmp_path / "mine" / "schedule" / "slow.yaml").write_text("_target_: kleiber.optimizers.WSD\ndecay: 0.5\n")
    root = (conf_dir() / "train.yaml").read_text().replace("hydra:\n", f"hydra:\n  searchpath: [{tmp_path}/mine]\n")
    (tmp_path / "train.yaml").write_text(root)
    config, _ = resolve_config(Composer(config_dir=str(tmp_path)).compose(["schedule=slow"]))
    assert config["schedule"]["decay"] == 0.5


def test_files_of_choices_are_found_by_name():
    file = find_choice("data", "glue/sst2")
    assert file is not None and file.is_file() and find_choice("data", "glue") is None
    assert {"compare", "scaling"} <= set(list_choices("study")) and "_small" not in list_choices("study")


@pytest.mark.parametrize(
    ("override", "value"),
    [("design.lrs={a: [0.1], b: [0.2]}", {"a": [0.1], "b": [0.2]}), ("design.arms=[x]", ["x"])],
)
def test_a_dictionary_replaces_a_list_of_the_files_and_a_list_a_dictionary(override, value):
    cfg = Composer().compose(["study=compare", override], mode=RunMode.MULTIRUN)
    assert cfg.design[override.partition("=")[0].partition(".")[2]] == value


def test_a_value_that_cannot_be_merged_at_all_ends_in_an_error():
    with pytest.raises(ConfigError, match="optimizer"):
        Composer().compose(["optimizer=[1]"])


@pytest.mark.parametrize("overrides", ["budget.steps=60 budget.ratio.zz=1", "budget.ratio.zz=1", "budget.tokens.a.b=1"])
def test_a_key_below_a_budget_is_refused_though_another_budget_clears_it(overrides):
    """FAULTS 109."""
    with pytest.raises(ConfigError, match=r"budget\.(ratio\.zz|tokens\.a\.b) is a key of a number"):
        COMPOSER.compose(overrides.split())
