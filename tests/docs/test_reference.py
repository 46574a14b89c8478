"""The reference has every group, choice, key, exit code and range."""

import re

import pytest
from pages import reference, signatures
from small_run import REPOSITORY

from kleiber.config.compose import Composer
from kleiber.config.errors import ExitCode, Status

PAGES = reference.pages(REPOSITORY)


def test_every_choice_of_every_group_is_in_the_reference():
    composer = Composer("train")
    for group in composer.groups():
        page = PAGES[f"reference/{group.split('/')[0]}.md"]
        missing = [choice for choice in composer.choices(group) if f"`{group}={choice}`" not in page]
        assert missing == []


@pytest.mark.parametrize(
    "page, row",
    [
        (
            "retention",
            "| `retention.replay.fraction` | float | >= 0.001, &lt; 1 | `0.05` | of the tokens",
        ),
        ("model", "| `model.depth` | int | >= 1 | `2` | blocks |"),
        (
            "objective",
            "| `objective.noise` | float | >= 0, &lt; 0.5 | `0.1` | probability that",
        ),
        (
            "data",
            "| `data.rows` | `documents`, `stream` |  | `documents` | documents: each row is",
        ),
        ("keys", "| `batch.micro` | int or `auto` | >= 1 | `auto` |"),
    ],
)
def test_a_key_has_its_type_range_default_and_meaning(page, row):
    assert row in PAGES[f"reference/{page}.md"]


def test_every_key_of_a_class_that_a_choice_names_is_there():
    page = PAGES["reference/trainer.md"]
    for name in signatures.arguments("kleiber.training.Local"):
        assert f"| `trainer.{name}` |" in page


def test_values_that_a_run_supplies_are_not_keys():
    assert not [page for page in PAGES.values() if re.search(r"\.(vocab_size|run_id)` \|.*required", page)]


def test_a_description_may_have_several_lines_and_several_names():
    entries = signatures.entries_of(
        "Text.\n\nrate   how fast\n       it goes\na, b   both\n\nEnd  is no entry: one blank?"
    )
    assert entries["rate"] == "how fast it goes" and entries["a"] == entries["b"] == "both"


def test_every_exit_code_and_status_is_on_its_page():
    page = (REPOSITORY / "docs/exit_codes.md").read_text(encoding="utf-8")
    assert [code for code in ExitCode if f"| {int(code)} |" not in page] == []
    assert [status for status in Status if f"`{status}`" not in page] == []
