import ast
from pathlib import Path

import pytest
from faults.rows import COMPLAINTS, FAULTS, TESTS, page

HERE = Path(__file__).parents[1]


def test_every_fault_has_a_test():
    assert list(FAULTS) == list(range(1, 129))
    assert list(TESTS) == list(FAULTS)


@pytest.mark.slow
def test_every_test_that_is_named_is_there():
    named = {name for names in (*TESTS.values(), *COMPLAINTS.values()) for name in names}
    there = {
        f"{path.relative_to(HERE)}::{node.name}"
        for path in {HERE / name.split("::")[0] for name in named}
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert named - there == set()


def test_the_page_of_the_docs_lists_them_all():
    assert (HERE.parent / "docs/faults.md").read_text() == page()
