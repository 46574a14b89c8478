"""Text of a stranger's run, data or model adds no element to any page that the project writes."""

import ast
import re
from functools import partial
from pathlib import Path

import pytest
from fake_run import fake_run
from html_elements import HOSTILE, adds_no_element, elements

pytest.importorskip("altair")

import kleiber
from kleiber.launch.cli import main
from kleiber.types.score import Score

SOURCES = Path(kleiber.__file__).parent
TOPICS = SOURCES.parent / "kleiber_topics"
TESTS = Path(__file__).parents[1]
# By the module that writes a page or a part of one: what shows that a hostile text in it is only a text.
PAGES = {
    "charts/page.py": "charts/test_page.py::test_hostile_text_adds_no_element_and_no_attribute_to_a_page",
    "evals/generation.py": "generated_examples",
    "runs/coordinate_check.py": "no text of a run: names of layers of the check",
    "runs/evaluate.py": "evaluations",
    "studies/curves.py": "faults/test_hostile_pages.py::test_the_curves_of_a_hostile_run_add_no_element",
    "studies/fitted_law.py": "fitted_law",
    "studies/law_report.py":
        "studies/test_law_report.py::test_hostile_groups_columns_and_file_names_add_no_element_to_the_page",
    "studies/laws/table_laws.py": "studies/laws/test_table_laws.py"
        "::test_a_page_shows_the_printed_lines_and_hostile_columns_and_file_names_add_no_element",
    "studies/report.py": "studies/test_report.py::test_hostile_text_of_runs_and_findings_adds_no_element_to_the_page",
    "studies/site.py": "studies/test_site.py::test_hostile_names_and_texts_add_no_element",
    "training/callbacks/classes.py":
        "training/callbacks/test_classes.py::test_a_label_that_is_a_script_is_only_text_in_the_page",
}  # fmt: skip


def fitted_law(text: str) -> str:
    from kleiber.studies.fitted_law import FittedLaw

    return FittedLaw._repr_html_(type("Law", (), {"__str__": lambda _: text})())


def evaluations(text: str, tmp_path: Path) -> str:
    from kleiber.runs.evaluate import write_report

    score = Score(1.0, 0.5, 1.5, n=9, unit=text, better="lower", label=text).to_json()
    record = {"subject": text, "evals": {text: {text: {text: score}}}}
    write_report(tmp_path / "page.html", [], {}, record, None)
    return (tmp_path / "page.html").read_text()


def generated_examples(text: str) -> str:
    from kleiber.evals.generation import _table

    return _table(text, [{"kind": text, "inputs": {text: text}, "text": text, "references": [text], "chrf": 50.0}])


PARTS = (
    evaluations,
    generated_examples,
    fitted_law,
)


@pytest.mark.parametrize("part", PARTS)
def test_a_hostile_text_adds_no_element_to_a_part_of_a_page(part, tmp_path):
    assert adds_no_element(partial(part, tmp_path=tmp_path) if part is evaluations else part)


@pytest.mark.slow
def test_the_curves_of_a_hostile_run_add_no_element(tmp_path):
    pages = []
    for number, text in enumerate(("harmless", HOSTILE)):
        folder = fake_run(
            tmp_path / str(number) / "run", [{"batch_tokens": 9}], config={"batch": {"tokens": 9}},
            rows=[{"step": step, "stage": text, f"train/{text}": 1.0 + step} for step in (1, 2)], overrides=[text],
        )  # fmt: skip
        assert main(["plot", str(folder), "--y", f"train/{text}"]) == 0
        pages.append((folder / "curves.html").read_text())
    assert elements(pages[0]) == elements(pages[1])


def makes_html(path: Path) -> bool:
    """Whether a module renders a page, or has a text that looks like HTML."""
    tree = ast.parse(path.read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    renders = any(isinstance(call, ast.Name) and call.id == "render_page" for call in calls)
    return renders or any(re.search(r"<(div|table|pre|script|p|!doctype)[ >]", text) for text in texts)


@pytest.mark.slow
def test_every_module_that_writes_a_page_has_its_test():
    modules = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py") if makes_html(path)}
    assert modules - PAGES.keys() == set(), "show that a hostile text adds no element to these pages"
    names = {part.__name__ for part in PARTS}
    for shown_by in PAGES.values():
        if "::" in shown_by:
            file, _, test = shown_by.partition("::")
            assert f"def {test}(" in (TESTS / file).read_text(), shown_by
        else:
            assert shown_by in names or " " in shown_by, shown_by


def test_every_module_of_a_topic_that_writes_a_page_has_its_test():
    unseen = []
    for path in TOPICS.rglob("*.py"):
        tested = TESTS / "topics" / path.relative_to(TOPICS).with_name(f"test_{path.name}")
        if makes_html(path) and "hostile" not in tested.read_text():
            unseen.append(str(path.relative_to(TOPICS)))
    assert unseen == [], "show that a hostile text adds no element to these pages"
