"""Docstrings are read without running any code, by one process or by several."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.data.builtin import docstrings, read_docstrings, source_files

LONG = "A sentence about number {0} that is long enough to be kept, since it has more than eighty characters, {0}."


def test_docstrings_are_read_without_running_code(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        f'"""{LONG.format(1)}"""\nraise SystemExit\nif True:\n    class A:\n        """short"""\n'
        f'        async def f(self):\n            r"""{LONG.format(2)}\n\n            Indented."""\n'
    )
    assert docstrings(str(path)) == [LONG.format(1), LONG.format(2) + "\n\nIndented."]
    path.write_text("def broken(:\n" + '"""' * 2)
    assert docstrings(str(path)) == []
    path.write_bytes(b'"""\xff\xfe' + b"x" * 100 + b'"""')
    assert docstrings(str(path)) == []


def test_the_topics_of_pydoc_are_read() -> None:
    topics = next(path for path in source_files() if path.endswith("pydoc_data/topics.py"))
    texts = docstrings(topics)
    assert len(texts) > 50 and any(text.startswith('The "assert" statement') for text in texts)


@pytest.mark.process
@pytest.mark.slow
def test_workers_read_what_one_process_reads() -> None:
    paths = source_files()[:40]
    assert list(read_docstrings(paths, workers=2)) == [docstrings(path) for path in paths]
