"""Schedules rise, hold and fall as documented, and WSD shares its steps before the branch with longer runs."""

import itertools

import pytest

from kleiber.optimizers.schedules import WSD, Constant, Cosine, Schedule, warmup_factor


@pytest.mark.parametrize("schedule", [WSD(), Cosine(), Constant()])
@pytest.mark.parametrize("total", [1, 7, 60, 5000])
def test_schedules_rise_to_one_and_stay_positive(schedule, total):
    values = [schedule(step, total) for step in range(total)]
    assert all(0 < value <= 1 for value in values)
    assert values[0] <= max(values)
    if total >= 60:
        assert max(values) == pytest.approx(1.0, abs=0.1)
        assert values[0] < 0.1


def test_wsd_is_flat_and_then_falls_in_a_line():
    values = [WSD(decay=0.25, warmup_steps=100)(step, 1000) for step in range(1000)]
    assert values[98] < 1 and values[49] == pytest.approx(0.5)
    assert set(values[100:750]) == {1.0}
    falls = {round(a - b, 9) for a, b in itertools.pairwise(values[751:])}
    assert falls == {0.004}


@pytest.mark.parametrize("total", [10, 333, 4000])
@pytest.mark.parametrize("decay", [0.1, 0.2, 1 / 3])
def test_wsd_does_not_depend_on_the_total_before_its_branch_step(total, decay):
    schedule = WSD(warmup_steps=2, decay=decay)
    branch = schedule.branch_step(total)
    assert all(schedule(step, total) == schedule(step, 100 * total) for step in range(branch))
    assert schedule(branch + 1, total) < schedule(branch + 1, 100 * total)


def test_the_warmup_takes_its_steps_and_at_most_a_fifth_of_the_run():
    assert [warmup_factor(step, 1000, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(9, 50, 100) == 1.0 and warmup_factor(4, 50, 100) == 0.5
    assert warmup_factor(0, 3, 100) == warmup_factor(0, 1000, 0) == 1.0


def test_cosine_falls_by_half_a_cosine_to_its_final_share():
    schedule = Cosine(warmup_steps=0, final=0.2)
    assert (
        schedule(0, 100) == 1.0 and schedule(50, 100) == pytest.approx(0.6) and schedule(100, 100) == pytest.approx(0.2)
    )


def test_only_a_schedule_with_a_stable_phase_has_a_branch_step():
    assert Schedule().branch_step(100) is Cosine().branch_step(100) is None
    assert WSD(decay=0.0).branch_step(100) == 99, "a branch has at least one step of its own"


def test_a_warmup_can_be_shortened_and_not_lengthened():
    assert [WSD(warmup_steps=100).limit_warmup(steps) for steps in (7, 500)] == [WSD(warmup_steps=7), WSD()]
    assert Cosine(final=0.3).limit_warmup(7) == Cosine(warmup_steps=7, final=0.3)
    assert Constant().limit_warmup(7) == Constant(warmup_steps=7)
