"""The seconds of a step follow from those of measured sizes."""

import pytest

from kleiber.launch.price_estimate import step_seconds
from kleiber.launch.run_cost import Speed


def test_steps_between_two_measured_sizes_are_interpolated():
    def speed(flops, seconds):
        return Speed({"": flops}, {"": seconds}, 0.3, 1.0, 1)

    small, large = speed(1e8, 0.01), speed(1e10, 0.25)  # 1e10 and 4e10 FLOP/s
    assert step_seconds(1e8, "", [small, large]) == pytest.approx(0.01)
    assert step_seconds(1e9, "", [small, large]) == pytest.approx(1e9 / 2e10)
    assert step_seconds(1e11, "", [small, large]) == pytest.approx(1e11 / 4e10)


def test_a_stage_of_a_chain_has_the_speed_of_its_name():
    speed = Speed({"a": 1e8, "b": 1e8}, {"a": 0.01, "b": 0.04}, 0.3, 1.0, 1)
    assert step_seconds(1e8, "b", [speed]) == pytest.approx(0.04)
    assert step_seconds(1e8, "c", [speed]) == pytest.approx(1e8 / 6.25e9), "the median of the others"
