"""The generated page of a study says what its records say."""

import json
import re

import pytest
from pages import figures, results, tables
from recorded_numbers import numbers, rounds_to
from small_run import REPOSITORY

IMAGE = re.compile(r"(?m)^!\[[^]]*\]\(([^)]+)\)$")


@pytest.fixture(scope="module")
def pages():
    return results.pages(REPOSITORY)


@pytest.mark.parametrize("study", results.studies(REPOSITORY), ids=lambda study: study.name)
def test_a_page_has_every_table_verdict_and_parameter_of_its_records(pages, study):
    page = pages[f"results/{study.name}/index.md"]
    findings = study.findings
    assert study.question in page and study.answer in page
    for title, rows in findings["tables"].items():
        assert (f"### {title}" in page or f'"{title} ({len(rows)} rows)"' in page) == bool(rows)
    assert all(f"`{verdict['code']}`" in page for verdict in findings["verdicts"])
    for name, parameter in study.law.get("params", {}).items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert rounds_to(numbers(row), f"{abs(parameter['value']):.3g}")
        assert ("not identified" in row) != parameter["identified"]


def test_the_overview_has_a_row_a_study_that_says_whether_its_rows_are_there():
    overview = results.overview(REPOSITORY)
    for study in results.studies(REPOSITORY):
        (row,) = [line for line in overview.splitlines() if f"]({study.name}/index.md)" in line]
        has_rows = study.name == "golden" or (study.folder / "runs.jsonl.gz").is_file()
        assert study.answer in row and row.endswith(f"| {'yes' if has_rows else 'no'} |")


def test_studies_that_are_reported_together_do_not_count_the_runs_of_each_other():
    study = {study.name: study for study in results.studies(REPOSITORY)}
    assert study["six_questions"].cost == "105 runs, 3.9 h"
    assert study["six_questions_speed"].cost == "7 runs, 5 min"


def test_a_study_whose_number_changes_has_another_page(pages, tmp_path):
    study = tmp_path / "multirun/results/routers"
    study.mkdir(parents=True)
    findings = json.loads((REPOSITORY / "multirun/results/routers/findings.json").read_text())
    findings["tables"]["Routers"][0]["loss"] = 12.345
    (study / "findings.json").write_text(json.dumps(findings))
    (study / "discussion.md").write_text((REPOSITORY / "multirun/results/routers/discussion.md").read_text())
    assert "12.35" in results.page(results.read_study(study), REPOSITORY)
    assert "12.35" not in pages["results/routers/index.md"]


def test_an_interval_stands_behind_its_estimate():
    row = {"what": "a", "value": -0.5, "seeds": 3, "lo": -0.75, "hi": 0.25, "time": 2.0}
    assert tables.with_intervals(row) == {"what": "a", "value": "-0.5 [-0.75, 0.25]", "seeds": 3, "time": 2.0}
    assert tables.with_intervals({"loss": 2.0, "lo": None, "hi": None}) == {"loss": 2.0}


@pytest.mark.parametrize(
    "value, text",
    [(True, "yes"), (3.0, "3"), (1234567.0, "1,234,567"), (0.12345678, "0.1235"), (2.6e11, "2.600e+11"), (None, "")],
)
def test_numbers_are_short(value, text):
    assert tables.cell(value) == text


def test_no_cell_can_break_a_table():
    line = tables.table(["a"], [[tables.cell("x | y\n<script> {N: 1} `{N: 1}`")]]).splitlines()[-1]
    assert line == "| x \\| y &lt;script> &#123;N: 1&#125; `{N: 1}` |"


def test_a_discussion_shows_its_only_figure_in_git_which_is_small():
    shown = {study.name: IMAGE.findall(study.discussion) for study in results.studies(REPOSITORY)}
    files = {study.folder / path for study in results.studies(REPOSITORY) for path in shown[study.name]}
    without = {study.name for study in results.studies(REPOSITORY) if not study.figures}
    assert {name for name, paths in shown.items() if len(paths) != 1} == without
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) <= 60_000 and sum(sizes) <= 4_000_000


def test_a_page_has_each_figure_once_and_those_of_its_discussion_in_their_places(pages):
    for study in results.studies(REPOSITORY):
        shown = IMAGE.findall(pages[f"results/{study.name}/index.md"])
        assert sorted(shown) == study.figures and "<!--" not in pages[f"results/{study.name}/index.md"]
    shown = IMAGE.findall(pages["results/forgetting/index.md"])
    assert shown[:3] == [f"figures/{name}.png" for name in ("matched", "pareto", "trajectory")]


def test_another_row_has_another_place_in_the_cache(tmp_path):
    home = tmp_path / "study"
    home.mkdir()
    (home / "runs.jsonl.gz").write_bytes(b"1")
    place = figures.place_of(home, (), tmp_path)
    (home / "figures").mkdir()
    (home / "figures" / "a.svg").write_text("")
    (home / "discussion.md").write_text("no row")
    assert figures.place_of(home, (), tmp_path) == place
    (home / "runs.jsonl.gz").write_bytes(b"2")
    assert figures.place_of(home, (), tmp_path) != place


@pytest.mark.slow
@pytest.mark.process
def test_figures_are_drawn_from_the_rows_once(tmp_path):
    source = REPOSITORY / "multirun/results/qk_small"
    place = figures.place_of(source, (), tmp_path)
    (tmp_path / figures.CACHE / f"qk_small-{'0' * 16}").mkdir(parents=True)
    figures.draw_all({place: (source, ())})
    drawn = {path: path.stat().st_mtime_ns for path in place.glob("figures/*.png")}
    names = json.loads((source / "findings.json").read_text())["figures"]
    assert {path.stem for path in drawn} == set(names) and list(place.parent.iterdir()) == [place]
    (kept,) = source.glob("figures/*.svg")
    assert (place / "figures" / kept.name).read_bytes() == kept.read_bytes()
    figures.draw_all({place: (source, ())})
    assert drawn == {path: path.stat().st_mtime_ns for path in place.glob("figures/*.png")}
