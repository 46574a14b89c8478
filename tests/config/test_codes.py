"""Exit codes are those that schedulers and scripts rely on, and every status has a code and a color."""

import pytest

from kleiber.config.codes import ExitCode, Status


def test_exit_codes_are_the_documented_numbers():
    codes = {code.name: int(code) for code in ExitCode}
    assert codes == {
        "DONE": 0, "FAILED": 1, "BAD_INPUT": 2, "UNDECIDED": 3, "PARTLY_FAILED": 4, "PREEMPTED": 75, "INTERRUPTED": 130,
    }  # fmt: skip


@pytest.mark.parametrize("status", Status)
def test_only_finished_runs_end_with_zero_and_only_preempted_ones_are_queued_again(status):
    assert status.exit_code == {"finished": 0, "preempted": 75}.get(status, 1)


def test_failures_have_the_color_of_failures():
    colors = {status: status.color for status in Status}
    assert colors.pop(Status.FINISHED) == "green" and colors.pop(Status.RUNNING) == "cyan"
    assert colors.pop(Status.MISSING) == "yellow" and set(colors.values()) == {"red"}
