"""Nested configs by dotted key, and with their strings replaced."""

from kleiber.config.nested import flatten, map_strings


def test_values_are_listed_by_dotted_key_and_empty_nodes_and_lists_are_values():
    config = {"model": {"depth": 2, "mlp": {"hidden": None}}, "evals": {}, "betas": [0.9, {"a": 1}]}
    assert flatten(config) == {"model.depth": 2, "model.mlp.hidden": None, "evals": {}, "betas": [0.9, {"a": 1}]}
    assert flatten(3, "seed") == {"seed": 3}


def test_every_string_of_a_config_is_mapped_and_keys_and_numbers_are_kept():
    config = {"a": "x", "b": {"c": ["x", 1, {"d": "x"}]}, "e": None}
    assert map_strings(config, str.upper) == {"a": "X", "b": {"c": ["X", 1, {"d": "X"}]}, "e": None}
