"""The reference has every group, choice, key, exit code and range."""

import re

import pytest
from pages import reference, signatures, topics
from small_run import REPOSITORY

from kleiber.config.compose import Composer
from kleiber.config.errors import ExitCode, Status
from kleiber.config.targets import SUPPLIED


@pytest.fixture(scope="module")
def pages():
    return reference.pages(REPOSITORY)


def test_every_choice_of_every_group_is_in_the_reference(pages):
    composer = Composer("train")
    for group in composer.groups():
        page = pages[f"reference/{group.split('/')[0]}.md"]
        missing = [choice for choice in composer.choices(group) if f"`{group}={choice}`" not in page]
        assert missing == []


def test_the_table_of_evaluations_has_each_of_them():
    page = (REPOSITORY / "docs/evaluations/index.md").read_text()
    table = page[page.index("## Which question") :]
    assert [choice for choice in Composer("train").choices("evals") if f"`{choice}`" not in table] == []


def test_the_page_about_sweeps_of_wandb_shows_the_file():
    page = (REPOSITORY / "docs/guides/wandb_sweep.md").read_text()
    _, _, listing = (REPOSITORY / "examples/wandb_sweep.yaml").read_text().partition("name: ")
    assert f"name: {listing}```" in page


def test_the_page_about_extensions_names_all_values_that_a_run_supplies():
    page = (REPOSITORY / "docs/extending/index.md").read_text()
    assert sorted(name for name in SUPPLIED if f"`{name}`" not in page) == []


def test_choices_that_change_a_run_are_named_on_a_page():
    written = [*(REPOSITORY / "docs").rglob("*.md"), *topics.readmes(REPOSITORY).values()]
    pages = " ".join(path.read_text() for path in written)
    composer, unnamed = Composer("train"), []
    for group in ("adapter", "callbacks", "objective", "optimizer", "schedule"):
        unnamed += [f"{group}={name}" for name in composer.choices(group) if not named(group, name, pages)]
    assert {*unnamed} <= {"callbacks=default"}


def named(group, name, pages):
    """Whether a choice is written as group=choice or, after another choice, as `choice`."""
    return re.search(rf"\b{group}=\[?{name}\b|`{name}`", pages) is not None


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
            "| `objective.noise` | float | >= 0, &lt; 0.5 | `0.0` | probability that",
        ),
        (
            "data",
            "| `data.rows` | `documents`, `stream` |  | `documents` | documents: each row is",
        ),
        ("keys", "| `batch.micro` | int or `auto` | >= 1 | `auto` |"),
    ],
)
def test_a_key_has_its_type_range_default_and_meaning(pages, page, row):
    assert row in pages[f"reference/{page}.md"]


def test_every_key_of_a_class_that_a_choice_names_is_there(pages):
    page = pages["reference/trainer.md"]
    for name in signatures.arguments("kleiber.training.Local"):
        assert f"| `trainer.{name}` |" in page


def test_values_that_a_run_supplies_are_not_keys(pages):
    assert not [page for page in pages.values() if re.search(r"\.(vocab_size|run_id)` \|.*required", page)]


def test_a_description_may_have_several_lines_and_several_names():
    entries = signatures.entries_of(
        "Text.\n\nrate   how fast\n       it goes\na, b   both\n\nEnd  is no entry: one blank?"
    )
    assert entries["rate"] == "how fast it goes" and entries["a"] == entries["b"] == "both"


def test_every_exit_code_and_status_is_on_its_page():
    page = (REPOSITORY / "docs/exit_codes.md").read_text(encoding="utf-8")
    assert [code for code in ExitCode if f"| {int(code)} |" not in page] == []
    assert [status for status in Status if f"`{status}`" not in page] == []
