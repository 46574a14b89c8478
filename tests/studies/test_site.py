"""The static site of a folder: whole links, escaped texts, nothing from elsewhere, and nothing of others replaced."""

import json
import re
import shutil
from pathlib import Path

import pytest
from fake_run import fake_run
from html_elements import HOSTILE, elements, shown_text

from kleiber.launch.cli import main
from kleiber.studies import site

RECORDED = Path(__file__).parents[2] / "multirun"
ODD = "<b>&'\"#?%2e {{7*7}}"  # the name of a folder


def write_study(folder, text="harmless"):
    """A folder with the findings of a study, its figure, and `text` in every field that a stranger may have written."""
    findings = json.loads((RECORDED / "results" / "sparsity" / "findings.json").read_text())
    claim = {**findings["claims"][0], "verdict": text, "advice": text}
    findings |= {
        "study": text, "question": text, "answer": text, "runs": text, "missing": [text], "figures": ["arms"],
        "claims": [claim], "tables": {text: [{text: text}]}, "caveats": [{"code": text, "text": text}],
        "verdicts": [{"level": "note", "code": text, "text": text}], "laws": None,
    }  # fmt: skip
    (folder / "figures").mkdir(parents=True)
    (folder / "findings.json").write_text(json.dumps(findings))
    (folder / "figures" / "arms.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>x</script></svg>')


def write_runs(folder, name="run"):
    metrics = {"val/docs/loss": 2.5}
    fake_run(folder / f"{name}-a-00000000", [{"metrics": metrics}], config={"model": {"depth": 1}})
    fake_run(folder / f"{name}-b-00000001", [{"metrics": metrics}], config={"model": {"depth": 2}}, seed=1)


def pages(home):
    return {file.name: file.read_text(encoding="utf-8") for file in home.glob("*.html")}


def targets(page):
    """The addresses to which a page leads, other than those of pictures that it contains."""
    places = [value for _, attributes in elements(page) for name, value in attributes if name in ("href", "src")]
    return [place for place in places if place is not None and not place.startswith(("data:image/", "#"))]


def test_studies_and_runs_become_pages_that_link_to_each_other_alone(tmp_path):
    write_study(tmp_path / "results" / "first")
    write_runs(tmp_path / "runs")
    home, record = site.publish(tmp_path)
    assert home == tmp_path / "site" and not record["problems"]
    assert [(page["name"], page["decision"]) for page in record["pages"]] == [
        ("results/first", "supported"),
        ("runs", None),
    ]
    written = pages(home)
    assert {page["page"] for page in record["pages"]} | {"index.html"} == written.keys()
    assert all(target in written for page in written.values() for target in targets(page))
    assert set(targets(written["index.html"])) == written.keys() - {"index.html"}
    assert "run-a-00000000" in written["runs.html"] and written["runs.html"].count("data:image/svg+xml") == 1
    assert "data:image/svg+xml" in written["results-first.html"] and "harmless" in shown_text(written["index.html"])


@pytest.mark.slow
def test_hostile_names_and_texts_add_no_element(tmp_path):
    for name, text, run in (("plain", "harmless", "plain"), (ODD, HOSTILE, "<script>a")):
        write_study(tmp_path / name / "studies" / name, text)
        write_runs(tmp_path / name / "runs" / name, run)
    written = []
    for name in ("plain", ODD):
        home, record = site.publish(tmp_path / name, tmp_path / f"site of {name}")
        assert [page["name"] for page in record["pages"]] == [f"runs/{name}", f"studies/{name}"]
        files = ["index.html", *(page["page"] for page in record["pages"])]
        written.append([[tag for tag, _ in elements(pages(home)[file])] for file in files])
    assert written[0] == written[1]


def test_names_that_differ_in_odd_characters_only_have_pages_of_their_own(tmp_path):
    for name in ("a b", "a?b", "a#b", "A-B", "index", "...", "x" * 200):
        write_study(tmp_path / name)
    home, record = site.publish(tmp_path, tmp_path / "out")
    names = [page["page"] for page in record["pages"]]
    assert len({name.lower() for name in names} | {"index.html"}) == 8
    assert all(site.PAGE.fullmatch(name) and len(name) < 100 for name in names)
    assert set(targets(pages(home)["index.html"])) == set(names)


def test_links_are_not_followed(tmp_path):
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    write_study(secret, "classified")
    write_runs(secret / "runs", "classified")
    (secret / "figures" / "arms.svg").write_text("<svg>classified</svg>")
    for name in ("good", "linked_findings", "linked_figure", "linked_figures"):
        write_study(folder / name)
    (folder / "linked_findings" / "findings.json").unlink()
    (folder / "linked_findings" / "findings.json").symlink_to(secret / "findings.json")
    (folder / "linked_figure" / "figures" / "arms.svg").unlink()
    (folder / "linked_figure" / "figures" / "arms.svg").symlink_to(secret / "figures" / "arms.svg")
    shutil.rmtree(folder / "linked_figures" / "figures")
    (folder / "linked_figures" / "figures").symlink_to(secret / "figures")
    (folder / "linked_study").symlink_to(secret)
    (folder / "runs" / "run").mkdir(parents=True)
    for name in ("config.yaml", "summary.json"):
        (folder / "runs" / "run" / name).symlink_to(secret / "runs" / "classified-a-00000000" / name)
    home, record = site.publish(folder)
    assert [page["name"] for page in record["pages"]] == ["good"]
    assert {problem.partition(":")[0] for problem in record["problems"]} == {
        "linked_findings", "linked_figure", "linked_figures", "runs",
    }  # fmt: skip
    secrets = ("classified", site.picture(b"<svg>classified</svg>", ".svg"))
    assert not any(text in page for page in pages(home).values() for text in secrets)


def test_what_is_damaged_is_named_and_the_rest_published(tmp_path, capsys):
    for name in ("good", "no_json", "no_findings", "other_type", "no_law"):
        write_study(tmp_path / name)
    (tmp_path / "no_json" / "findings.json").write_text("{")
    (tmp_path / "no_findings" / "findings.json").write_text("{}")
    findings = json.loads((tmp_path / "good" / "findings.json").read_text())
    (tmp_path / "other_type" / "findings.json").write_text(json.dumps({**findings, "tables": {"x": [1]}}))
    (tmp_path / "no_law" / "laws.json").write_text('{"level": 0.9}')
    assert main(["publish", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "site" / "index.json").read_text())
    assert [page["name"] for page in record["pages"]] == ["good"] and len(record["problems"]) == 4
    printed = capsys.readouterr().out
    assert all(f"not published: {problem}" in printed for problem in record["problems"])


@pytest.mark.slow
def test_folders_of_others_are_refused_and_an_earlier_site_is_replaced(tmp_path, capsys):
    for name in ("first", "second"):
        write_study(tmp_path / "runs" / name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for out in (tmp_path / "mine", tmp_path / "runs", tmp_path / "mine" / "notes.txt"):
        assert main(["publish", str(tmp_path / "runs"), "--out", str(out)]) == 2
        assert str(out) in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    command = ["publish", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(command) == 0 and (tmp_path / "out" / "second.html").exists()
    (tmp_path / "out" / "notes.html").write_text("mine")
    shutil.rmtree(tmp_path / "runs" / "second")
    assert main(command) == 0 and not (tmp_path / "out" / "second.html").exists()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "index.json",
        "first.html",
        "notes.html",
    }


def test_a_folder_with_nothing_to_publish_is_refused(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "none"):
        assert main(["publish", str(folder)]) == 2 and str(folder) in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_runs_of_a_study_inside_another_folder_of_runs_stand_on_its_page_alone(tmp_path):
    write_runs(tmp_path, "outer")
    write_study(tmp_path / "study")
    write_runs(tmp_path / "study", "inner")
    home, _ = site.publish(tmp_path)
    written = pages(home)
    outer = next(page for name, page in written.items() if name not in ("index.html", "study.html"))
    assert "inner-a" in written["study.html"] and "outer-a" not in written["study.html"]
    assert "outer-a" in outer and "inner-a" not in outer


@pytest.mark.slow
def test_the_recorded_studies_fit_into_20_megabytes(tmp_path):
    home, record = site.publish(RECORDED, tmp_path / "site")
    assert len(record["pages"]) >= 52 and not record["problems"]
    written = pages(home)
    assert sum(map(len, written.values())) < 20e6
    assert all(target in written for page in written.values() for target in targets(page))
    assert not any(re.search(r'(src|href)="(https?:)?//', page) for page in written.values())
