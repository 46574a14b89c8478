"""Text of a stranger's run, data or model adds no element to any page that the project writes."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_run import fake_run
from html_elements import HOSTILE, elements

pytest.importorskip("altair")

import kleiber
from kleiber.launch.cli import main
from kleiber.types.score import Score

SOURCES = Path(kleiber.__file__).parent
TESTS = Path(__file__).parents[1]
# By the module that writes a page or a part of one: what shows that a hostile text in it is only a text.
PAGES = {
    "charts/page.py": "charts/test_page.py::test_hostile_text_adds_no_element_and_no_attribute_to_a_page",
    "kleiber_topics/interpretability/attention/colored_text.py": "colored_text",
    "kleiber_topics/interpretability/attribution/page.py": "attribution",
    "kleiber_topics/interpretability/autoencoder/report.py": "autoencoder",
    "kleiber_topics/bias/page.py": "bias",
    "kleiber_topics/collapse/page.py": "degeneration",
    "kleiber_topics/instructions/evaluation.py": "instructions",
    "kleiber_topics/retrieval/figures.py": "retrieval",
    "kleiber_topics/bias/audit.py": "words",
    "kleiber_topics/judging/server.py":
        "topics/judging/test_server.py::test_the_keys_work_in_a_browser_and_hostile_text_is_text",
    "runs/coordinate_check.py": "no text of a run: names of layers of the check",
    "runs/evaluate.py": "evaluations",
    "studies/curves.py": "faults/test_hostile_pages.py::test_the_curves_of_a_hostile_run_add_no_element",
    "studies/fitted_law.py": "fitted_law",
    "studies/law_report.py":
        "studies/test_law_report.py::test_hostile_groups_columns_and_file_names_add_no_element_to_the_page",
    "studies/report.py": "studies/test_report.py::test_hostile_text_of_runs_and_findings_adds_no_element_to_the_page",
    "training/callbacks/after_training.py":
        "training/callbacks/test_after_training_classes.py::test_a_label_that_is_a_script_is_only_text_in_the_page",
}  # fmt: skip


def attribution(text: str) -> str:
    from kleiber_topics.interpretability.attribution.page import LABELS, explorer

    targets = [{"at": 1, "name": text, "log_prob": -1.0}, {"at": None, "name": text, "log_prob": -1.0}]
    methods = {name: [[0.1, 0.2], [0.3, -0.1]] for name in LABELS}
    return explorer({text: [{"tokens": [text, text], "targets": targets, "methods": methods}]})


def colored_text(text: str) -> str:
    from kleiber_topics.interpretability.attention.colored_text import colored_pages

    lens = {"tokens": [text], "probability": [[0.5], [0.5]], "best": [[text], [text]], "loss": [1.0, 1.0]}
    return colored_pages({text: lens})


def autoencoder(text: str) -> str:
    from kleiber_topics.interpretability.autoencoder.report import features_page

    contexts = [{"tokens": [text, text], "at": 1, "value": 0.5}]
    return features_page({"features": {text: [{"feature": 3, "density": 0.1, "contexts": contexts}]}})


def bias(text: str) -> str:
    from kleiber_topics.bias.page import groups_html

    group = {"bias_type": text, "n": 9, "value": 0.5, "lo": 0.4, "hi": 0.6, "p": 0.1, "q": 0.1, "biased": True}
    return groups_html({"details": {"fdr": 0.1, "groups": {text: [group]}}})


def degeneration(text: str) -> str:
    from kleiber_topics.collapse.page import samples_html

    samples = [{"prompt": text, "pieces": [[text, False], [text, True]]}]
    return samples_html({"samples": {text: {"greedy": samples}}})


def instructions(text: str) -> str:
    from kleiber_topics.instructions.evaluation import YES, Instructions

    rows = [{"prompt": text, "answer": text, "follows": follows} for follows in YES]
    return Instructions.page(SimpleNamespace(), {"details": {text: rows}})


def retrieval(text: str) -> str:
    from kleiber_topics.retrieval.figures import LABELS, page

    example = dict.fromkeys(("retrieved", "before", "target"), text)
    return page({"examples": {text: [{"method": next(iter(LABELS)), "nats": 1.0, "nats_with": 0.5, **example}]}})


def fitted_law(text: str) -> str:
    from kleiber.studies.fitted_law import FittedLaw

    return FittedLaw._repr_html_(type("Law", (), {"__str__": lambda _: text})())


def words(text: str) -> str:
    from kleiber_topics.bias.audit import BiasAudit

    return BiasAudit().page(text, text)


def evaluations(text: str, tmp_path: Path) -> str:
    from kleiber.runs.evaluate import write_report

    score = Score(1.0, 0.5, 1.5, n=9, unit=text, better="lower", label=text).to_json()
    record = {"subject": text, "evals": {text: {text: {text: score}}}}
    write_report(tmp_path / "page.html", [], {}, record, None)
    return (tmp_path / "page.html").read_text()


PARTS = (
    attribution,
    autoencoder,
    bias,
    colored_text,
    degeneration,
    evaluations,
    fitted_law,
    instructions,
    retrieval,
    words,
)


@pytest.mark.parametrize("part", PARTS)
def test_a_hostile_text_adds_no_element_to_a_part_of_a_page(part, tmp_path):
    pages = [part(*([text, tmp_path] if part is evaluations else [text])) for text in ("harmless", HOSTILE)]
    assert "harmless" in pages[0] and elements(pages[0]) != []
    kinds = [[name for name, _ in elements(page)] for page in pages]  # attributes such as a tip have the text
    assert kinds[0] == kinds[1]


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
