"""Progress: what is shown when, in a terminal and elsewhere, and that nothing stays behind."""

import io
import threading
import time

import pytest
from processes import wait_for

from kleiber.records import progress
from kleiber.records.progress import Activity, Display, activity, format_duration


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A hundred times faster than real."""
    for name, seconds in (("REFRESH", 0.005), ("PATIENCE", 0.02), ("SECONDS", 0.05)):
        monkeypatch.setattr(progress, name, seconds)


class Terminal(io.StringIO):
    """A terminal that keeps what was drawn on it."""

    def isatty(self):
        return True


def use_terminal(monkeypatch) -> Terminal:
    """Called in the test itself, because pytest replaces stderr between a fixture and a test."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("sys.__stderr__", stream)
    return stream


def test_a_quick_activity_prints_nothing(capsys, monkeypatch):
    for name in ("PATIENCE", "SECONDS"):
        monkeypatch.setattr(progress, name, 600.0)
    progress.DISPLAY.printed = time.monotonic()
    with activity("preparing", 10, "rows"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_a_long_activity_prints_how_far_it_is_and_what_it_took(capsys):
    with activity("preparing", 4, "rows") as work:
        for _ in work.track(range(4)):
            wait_for(lambda: work.shown)
            time.sleep(progress.PATIENCE)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("preparing:") and " of 4 rows in " in first
    assert last.startswith("preparing: 4 rows in ")


def test_items_are_counted_by_their_size_after_their_use():
    work = Activity("scoring", 6, "samples")
    counts = [(work.done, work.fraction()) for _ in work.track(["ab", "cd", "ef"], len)]
    assert counts == [(0, 0.0), (2, pytest.approx(1 / 3)), (4, pytest.approx(2 / 3))] and work.done == 6


def test_the_innermost_activity_is_shown_and_only_the_outermost_has_a_closing_line(capsys, monkeypatch):
    monkeypatch.setattr(Activity, "closing_text", lambda self: f"the end of {self.label}")
    with activity("training"):
        with activity("scoring"):
            wait_for(lambda: progress.DISPLAY.line.startswith("scoring"))
        wait_for(lambda: progress.DISPLAY.line.startswith("training"))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "the end" in line] == [lines[-1]] == ["the end of training"]


def test_plain_lines_get_rarer_when_an_activity_lasts_for_hours(capsys, monkeypatch):
    display, work = Display(), Activity("training")
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display.printed = work.began = 0.0
    for hours in (0, 3):
        for second in range(600):
            now[0] = hours * 3600.0 + 10 + second
            display.show(work)
    lines = capsys.readouterr().err.splitlines()
    late = [line for line in lines if " h" in line]
    assert 100 <= len(lines) - len(late) <= 130 and 4 <= len(late) <= 7


def test_other_ranks_print_nothing_and_need_no_thread(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with activity("preparing"):
        assert threading.active_count() == 1 or "progress" not in {thread.name for thread in threading.enumerate()}
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_activity_and_its_thread():
    with pytest.raises(ZeroDivisionError), activity("preparing"):
        raise ZeroDivisionError
    assert progress.DISPLAY.activities == []
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_an_activity_ends_whose_thread_a_signal_kept_from_starting(monkeypatch):
    def interrupted(thread):
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    display, work = Display(), Activity("training")
    with pytest.raises(KeyboardInterrupt):
        display.begin(work)
    display.end(work)
    assert display.activities == []


def test_a_terminal_has_one_live_line_and_the_log_has_plain_lines(monkeypatch):
    terminal = use_terminal(monkeypatch)
    log = io.StringIO()
    monkeypatch.setattr(progress.DISPLAY, "copy", log)
    with activity("preparing", 4, "rows") as work:
        for _ in work.track(range(4)):
            wait_for(lambda: terminal.getvalue().count("rows") > 2 and "of 4 rows" in log.getvalue())
    drawn = terminal.getvalue()
    assert "━" in drawn and "rows" in drawn, "a bar"
    assert drawn.count("\n") <= 3 and "\x1b[2K" in drawn, "states replace one another"
    assert "of 4 rows" in log.getvalue() and "\x1b" not in log.getvalue()


def test_text_is_printed_in_place_of_the_live_line(monkeypatch):
    terminal = use_terminal(monkeypatch)
    monkeypatch.setattr(progress.DISPLAY, "copy", io.StringIO())
    out = io.StringIO()
    with activity("preparing", 4, "rows"):
        wait_for(lambda: "preparing" in terminal.getvalue())
        progress.DISPLAY.write(out, "a warning")
        before = terminal.getvalue()
        time.sleep(0.05)
        progress.DISPLAY.write(out, "\n")
        wait_for(lambda: "preparing" in terminal.getvalue().removeprefix(before))
    assert out.getvalue() == "a warning\n"
    after = terminal.getvalue().removeprefix(before)
    assert before.endswith("\x1b[2K"), "the line is removed first"
    assert "preparing" in after, "and comes back when the text has ended"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.234, "0.23 s"), (7.4, "7 s"), (59.7, "1 min"), (61, "1 min 1 s"), (599, "9 min 59 s"),
        (630, "10 min"), (3599, "1 h"),
        (3600, "1 h"), (7384, "2 h 3 min"), (172_700, "47 h 58 min"), (668_777, "7.7 days"),
    ],
)  # fmt: skip
def test_durations_are_written_with_their_unit(seconds, text):
    assert format_duration(seconds) == text
