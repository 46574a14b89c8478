"""No text of a record reaches the terminal with a control character, whichever way it is printed."""

import logging

import pytest
from rich.table import Table
from rich.text import Text

from kleiber.records.terminal import (
    StderrHandler,
    columns,
    print_line,
    print_logs,
    print_rich,
    print_traceback,
    printable,
    warn_once,
    wrapped,
)

CODES = [chr(code) for code in (*range(32), *range(127, 160), 0x202E, 0x2066) if chr(code) not in "\n\t"]
HOSTILE = "a\x1b]0;owned\x07\x1b[2J\x9b31m\x85\u202e\udcff z"


def is_plain(text: str) -> bool:
    return not any(code in text for code in CODES) and "\udcff" not in text


def test_control_characters_become_escapes_and_other_text_stays():
    assert printable("".join(CODES[:3])) == "\\x00\\x01\\x02" and printable("\u202e") == "\\u202e"
    assert is_plain(printable(HOSTILE + "".join(CODES)))
    for text in ("Ünï©ödé ✓ 中文 🙂", "a\tb\nc", "", "\u200d\u0301"):
        assert printable(text) == text


@pytest.mark.parametrize("err", [False, True])
def test_lines_warnings_tables_and_tracebacks_are_printed_without_them(capsys, err):
    print_line(f"first {HOSTILE}", err=err, end="|")
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(Text(HOSTILE))
    table.add_row("[green]ok[/]")
    print_rich(table)
    for _ in range(2):
        warn_once(f"{HOSTILE} {err}")
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        print_traceback(error)
    shown = capsys.readouterr()
    assert is_plain(shown.out) and is_plain(shown.err) and "ok" in shown.out and "[green]" not in shown.out
    assert (shown.err if err else shown.out).startswith("first a\\x1b]0;owned")
    assert shown.err.count("warning: a") == 1 and "ValueError: a\\x1b" in shown.err


def test_a_table_is_as_wide_as_asked(capsys):
    table = Table("x", width=120)
    print_rich(table, 130)
    assert max(map(len, capsys.readouterr().out.splitlines())) == 120


def test_log_messages_go_the_same_way(capsys, monkeypatch):
    logging.disable(logging.NOTSET)  # a rank of another test in this process may have switched them off
    logger = print_logs()
    monkeypatch.setattr(logger, "propagate", False)  # pytest would keep the message, and not every worker can send it
    ours = [handler for handler in logger.handlers if isinstance(handler, StderrHandler)]
    monkeypatch.setattr(logger, "handlers", ours)  # pytest adds its own where a run has ended propagation before
    before = logger.level
    try:
        logging.getLogger("kleiber.data").error("no split %s", HOSTILE)
    finally:
        logger.setLevel(before)
    shown = capsys.readouterr().err
    assert "no split a\\x1b" in shown and is_plain(shown)


def test_a_line_is_wrapped_between_words_and_its_other_lines_are_indented():
    line = "  data    builtin, 1,024 training tokens; tokenizer bytes"
    for width in (30, 40, 60):
        lines = wrapped(line, 10, width).splitlines()
        assert max(map(len, lines)) <= width and " ".join(part.strip() for part in lines) == line.strip()
        assert all(part.startswith(" " * 10) and part[10] != " " for part in lines[1:])
    assert wrapped(line, 10, None) == wrapped(line, 10, 200) == line
    assert "/a/path/that/is/longer" in wrapped("  folder  /a/path/that/is/longer", 10, 20), "it can be copied"


def test_the_width_is_that_of_the_terminal_or_of_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert columns() is None and columns(err=True) is None, "the output of a test is no terminal"
    monkeypatch.setenv("COLUMNS", "60")
    assert columns() == columns(err=True) == 60
