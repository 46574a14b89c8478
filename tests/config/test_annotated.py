"""A config as YAML: its values and the defaults of its classes, each with its source."""

import yaml

from kleiber.config.annotated import annotated_yaml
from kleiber.config.compose import Composer, resolve_config
from kleiber.config.provenance import find_sources

OVERRIDES = ["model=moe", "model.depth=3", "budget.tokens=1M", "experiment=smoke", "retention=[replay]"]


def test_the_lines_are_the_config_and_its_defaults_each_with_a_source():
    composer = Composer()
    sources, config = find_sources(composer, OVERRIDES), resolve_config(composer.compose(OVERRIDES))[0]
    lines = list(annotated_yaml(config, sources))
    parsed = yaml.safe_load("\n".join(lines))

    def assert_within(part, whole):
        for key, value in part.items():
            assert_within(value, whole[key]) if isinstance(value, dict) and value else None
            assert isinstance(value, dict) or whole[key] == value

    assert_within(config, parsed)
    assert parsed["model"]["dropout"] == 0.0 and parsed["budget"]["stop_at_loss"] is None
    assert all("  # " in line for line in lines if not line.endswith(":"))
    assert any("dropout" in line and "default of kleiber.models.Transformer" in line for line in lines)


def test_every_value_of_the_default_config_has_a_source():
    composer = Composer()
    lines = list(annotated_yaml(resolve_config(composer.compose([]))[0], find_sources(composer, [])))
    assert [line for line in lines if line.endswith("# default")] == []


def test_an_option_that_the_model_decides_is_shown_as_its_attention_gets_it():
    overrides = ["model.qk_norm=false", "model.positions=learned"]
    composer = Composer()
    lines = annotated_yaml(resolve_config(composer.compose(overrides))[0], find_sources(composer, overrides))
    shown = [line.split() for line in lines]
    assert ["qk_norm:", "false", "#", "model.qk_norm"] in shown
    assert ["positions:", "none", "#", "model.positions"] in shown
