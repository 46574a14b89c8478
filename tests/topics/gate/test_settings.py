"""Settings of a stream survive the log, and refuse what cannot be decided."""

import pytest

from kleiber_topics.gate.recipes import Recipe
from kleiber_topics.gate.settings import Settings, pairs_of


def test_settings_are_read_back_from_the_log():
    settings = Settings(
        recipe=Recipe("train {seed} {size} {reserve}"), metric="loss: (.*)", better="higher", reserve="hidden",
        values={"size": "small"}, confirm_at={"size": "large"}, timeout=3.0, budget=7,
    )  # fmt: skip
    assert Settings.from_json(settings.to_json()) == settings
    assert settings.sign == 1.0


@pytest.mark.parametrize("item", ["size", "=3", "seed=3", "reserve=x", "a b=1", "-x=1"])
def test_values_of_placeholders_have_names(item):
    with pytest.raises(ValueError, match="KEY=VALUE"):
        pairs_of([item], "--set")


def test_overrides_have_no_placeholders():
    with pytest.raises(ValueError, match="--set"):
        Settings(recipe=Recipe(overrides=("model=gpt",)), metric="loss", values={"size": "small"})
