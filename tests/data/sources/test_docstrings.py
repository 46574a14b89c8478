"""Docstrings are read without running anything; versions of one text go to one split."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.data.sources.builtin import files
from kleiber.data.sources.docstrings import docstrings, groups, read_all, signature, split

LONG = "A sentence about number {0} that is long enough to be kept, since it has more than eighty characters, {0}."


def test_docstrings_are_read_and_nothing_runs(tmp_path: Path) -> None:
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


def test_the_topics_of_pydoc_are_there() -> None:
    topics = next(path for path in files() if path.endswith("pydoc_data/topics.py"))
    texts = docstrings(topics)
    assert len(texts) > 50 and any(text.startswith('The "assert" statement') for text in texts)


@pytest.mark.process
def test_workers_read_what_one_process_reads() -> None:
    paths = files()[:40]
    assert list(read_all(paths, workers=2)) == [docstrings(path) for path in paths]


def test_near_duplicates_are_one_group() -> None:
    texts = [" ".join(f"word{(i * 37 + k * k) % 1009}" for k in range(80)) for i in range(0, 4000, 1009)]
    texts += [texts[0].replace("word5 ", "other "), texts[0] + " and a last remark", "short"]
    found = groups(signature(text) for text in texts)
    assert found[4] == found[5] == found[0] == 0 or found[-2] == found[-3] == 0
    assert found[-1] == len(texts) - 1


def test_splits_keep_groups_together_and_are_not_empty() -> None:
    texts = [" ".join(f"w{(i * 7919 + k * (i + 3)) % 5003}" for k in range(40)) for i in range(600)]
    copies = [text + " with an ending of its own" for text in texts]
    names = list(split(texts + copies))
    assert names[:600] == names[600:]
    assert 0.01 < names.count("validation") / 1200 < 0.08 and 0.01 < names.count("test") / 1200 < 0.08
    assert set(split(["one", "two", "three"])) == {"train", "validation", "test"}
