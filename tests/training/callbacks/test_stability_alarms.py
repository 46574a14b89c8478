"""An alarm begins once, names layer, head, value and bound, ends when the value is back, and is off at null."""

import math

import pytest

from kleiber.training.callbacks.stability import (
    Alarms,
    Bound,
    relative_to_others,
    rescaled,
    steepest_part,
)


def alarms(bound: float | None = 50.0) -> Alarms:
    return Alarms({"attention_logit": Bound("max_attention_logit", bound, "largest attention logit")})


def test_an_alarm_names_layer_head_value_and_bound_once_until_it_ends():
    watch = alarms()
    (text,) = watch.check({"attention_logit/1": [3.0, 83.25]})
    bound = "callbacks.stability.max_attention_logit=50"
    assert text == f"largest attention logit of layer 1, head 1 is 83.2, above {bound}"
    assert watch.check({"attention_logit/1": [3.0, 90.0]}) == []
    assert watch.check({"attention_logit/1": [60.0, 10.0]})[0].startswith("largest attention logit of layer 1, head 0")
    assert len(watch.check({"attention_logit/1": [60.0, 90.0]})) == 1
    assert watch.counts == {"attention_logit": 3}


def test_null_is_off():
    assert alarms(None).check({"attention_logit/0": [1e9, math.nan]}) == []


@pytest.mark.parametrize(
    ("value", "below", "crossed"),
    [(0.04, True, True), (0.06, True, False), (-0.06, False, True), (0.04, False, False), (math.nan, True, True),
     (math.nan, False, True), (math.inf, False, True)],
)  # fmt: skip
def test_which_values_are_beyond_a_bound(value, below, crossed):
    assert Bound("key", 0.05, "a measure", below).is_crossed(value) is crossed


def test_gradients_are_compared_with_those_of_the_other_layers():
    norms = {"embedding": 9.0, "layer 0": 1.0, "layer 1": 2.0, "layer 2": 1e-6}
    ratios = relative_to_others(norms)
    assert ratios == pytest.approx({"layer 0": 1 / (1 + 5e-7), "layer 1": 4 / (1 + 1e-6), "layer 2": 1e-6 / 1.5})
    assert relative_to_others({"layer 0": 1.0, "embedding": 1.0}) == {}  # no other layer
    assert relative_to_others({"layer 0": 1.0, "layer 1": 0.0}) == {"layer 1": 0.0}


def test_norms_are_told_as_before_clipping():
    assert rescaled({"a": 3.0, "b": 4.0}, 10.0) == pytest.approx({"a": 6.0, "b": 8.0})
    assert rescaled({"a": 0.0}, 0.0) == {"a": 0.0}


def test_the_part_that_rose_most_is_named():
    usual = {"embedding": 5.0, "layer 0": 0.1, "layer 1": 0.1}
    assert steepest_part({"embedding": 6.0, "layer 0": 0.1, "layer 1": 8.0}, usual) == "80% of it in layer 1"
    assert steepest_part({"embedding": 6.0, "layer 0": 8.0}, {}) == "80% of it in layer 0"
    assert steepest_part({"embedding": 6.0, "layer 0": math.inf}, usual) == "not finite in layer 0"
    assert steepest_part({"embedding": math.inf, "layer 0": math.inf}, usual) == "not finite in every layer"
