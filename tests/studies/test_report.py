"""The report of a study: its files, its repetition, and the list of missing runs."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from html_elements import HOSTILE, elements
from processes import PATIENCE

from kleiber.launch.cli import main
from kleiber.studies.report import MOST_OPEN, closing_lines, page
from kleiber.studies.scaling import Scaling
from kleiber.studies.study import Findings

from .ladders import noisy, small_loss, write_tree

WIDTHS = {32: 25_000, 64: 100_000, 128: 400_000, 256: 1_600_000}


def write_run(folder, seed, num_params, status="finished"):
    """What a trunk with four branches leaves, its losses from a known law with .2 % noise."""
    tokens = 1e6 * 2.0 ** np.arange(4)
    losses = noisy(small_loss(num_params, tokens), [seed, num_params], 0.002)
    study = {"_target_": "kleiber.studies.Scaling", "bootstrap": 20}
    by_tokens = dict(zip(tokens.tolist(), losses.tolist(), strict=True))
    write_tree(folder, seed, num_params, 6.0 * num_params, by_tokens, status, study)


@pytest.fixture
def study(tmp_path):
    for width, num_params in WIDTHS.items():
        for seed in range(2):
            write_run(tmp_path / "scaling" / f"width{width}-seed{seed}", seed, num_params)
    return tmp_path / "scaling"


@pytest.mark.slow
def test_a_report_leaves_law_findings_figures_and_a_page_without_network(study, capsys):
    for name in ("by_me.pdf", "by_me.png", "earlier.png", "earlier.svg"):
        (study / "figures" / name).parent.mkdir(exist_ok=True)
        (study / "figures" / name).touch()
    assert main(["report", str(study)]) == 3, "less than a decade of D does not identify E"
    assert {path.name for path in (study / "figures").glob("*_me.*")} == {"by_me.pdf", "by_me.png"}
    assert not list((study / "figures").glob("earlier.*")), "of a figure that this report does not have"
    report = capsys.readouterr().out
    law = json.loads((study / "laws.json").read_text())
    assert law["n"] == 12, "seeds are averaged and D < 2M is left out"
    assert law["domain"]["D"] == [2e6, 8e6]
    assert law["bootstrap"]["method"] == "cluster t", "branches of one trunk are one sample of noise"
    assert [entry["min_tokens"] for entry in law["from_least_tokens"]] == [1e6, 2e6, 4e6]
    for name in ("ladder", "frontier", "residuals", "exponents", "backtests"):
        assert (study / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (study / "figures" / f"{name}.svg").read_text()
    page = (study / "report.html").read_text()
    assert "width32-seed0" in page and "vegaEmbed" in page
    assert 'src="http' not in page and 'href="http' not in page
    findings = json.loads((study / "findings.json").read_text())
    assert findings["answer"] in report and findings["not_identified"] == ["E"] and not findings["refused"]


@pytest.mark.slow
def test_cells_that_did_not_finish_are_named_and_left_out(study, capsys):
    write_run(study / "width512-seed0", 0, 6_400_000, status="failed")
    assert main(["report", str(study)]) == 3
    assert "not finished: width512-seed0 (failed)" in capsys.readouterr().out
    law = json.loads((study / "laws.json").read_text())
    assert law["domain"]["N"][1] == 1_600_000
    assert {"row": "width512-seed0", "rule": "status failed"} in law["excluded"]


def test_a_folder_without_a_run_is_refused_by_name(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path} contains no run" in capsys.readouterr().err


def test_a_folder_without_a_finished_run_is_refused(tmp_path, capsys):
    write_run(tmp_path / "s" / "a", 0, 10_000, status="failed")
    assert main(["report", str(tmp_path / "s")]) == 2
    assert "finished" in capsys.readouterr().err


def test_runs_too_short_for_the_study_are_refused_with_both_numbers(study, capsys):
    for config in study.glob("*/config.yaml"):
        config.write_text("study: {_target_: kleiber.studies.Scaling, min_tokens: 1G}\n")
    assert main(["report", str(study)]) == 2
    output = capsys.readouterr().err
    assert "min_tokens=1G" in output and "8,000,000" in output


@pytest.mark.parametrize("options", [{"law": "power"}, {"law": "none"}, {"size": "big"}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"study\.|must be"):
        Scaling(**options)


@pytest.mark.slow
def test_the_page_opens_in_a_browser_without_network(study):
    """Headless Chromium, where there is one: every figure is drawn, and nothing is written to the console."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here")
    assert main(["report", str(study)]) == 3
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    page = f"file://{study / 'report.html'}"
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=8000", "--dump-dom", page],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout.count("<svg") >= 6 and "Uncaught" not in done.stderr


def test_a_recorded_study_runs_no_file_of_code(study, tmp_path, capsys):
    code = tmp_path / "mine.py"
    code.write_text("import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\n")
    recorded = f"{{_target_: kleiber.studies.Scaling, law: '{code}:mine'}}\n"
    (study / "study.yaml").write_text(recorded)
    assert main(["report", str(study)]) == 2 and "mine.py" in capsys.readouterr().err
    (study / "study.yaml").unlink()
    for config in study.glob("*/config.yaml"):
        config.write_text(f"study: {recorded}")
    assert main(["report", str(study)]) == 2 and "mine.py" in capsys.readouterr().err
    assert not code.with_suffix(".ran").exists()


def page_of(text):
    """The page of a study with this text in every field that may come from a folder of runs."""
    findings = {
        "study": text, "question": text, "answer": text, "runs": text, "missing": [text], "seconds": 60.0,
        "verdicts": [{"level": "note", "code": text, "text": text}], "tables": {text: [{text: text}]},
        "caveats": [{"code": text, "text": text}], "level": 0.9,
        "claims": [{"decision": text, "verdict": text, "advice": text}],
    }  # fmt: skip
    return page(findings, Findings("", text=[text], methods=text), {}, [{"run": text, "loss": 2.5}])


def test_hostile_text_of_runs_and_findings_adds_no_element_to_the_page():
    assert elements(page_of(HOSTILE)) == elements(page_of("h" * len(HOSTILE)))


@pytest.mark.slow
@pytest.mark.long
def test_a_study_of_200_sizes_is_drawn(tmp_path):
    for number, num_params in enumerate(np.geomspace(2e4, 2e6, 200).astype(int).tolist()):
        write_run(tmp_path / "wide" / f"size{number}", 0, num_params)
    assert main(["report", str(tmp_path / "wide"), "--out", str(tmp_path / "page.html")]) in (0, 3)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f'<div id="{name}">' in page for name in ("ladder", "frontier", "residuals")) and "size199" in page


def test_the_terminal_states_claims_that_are_not_decided_and_not_in_the_answer():
    claims = [{"decision": "supported", "verdict": "a"}, {"decision": "undecided", "verdict": "whether told"}]
    claims += [{"decision": "undecided", "verdict": f"whether {i}"} for i in range(MOST_OPEN + 1)]
    claims = [{**claim, "advice": "add seeds"} for claim in claims]
    findings = {
        "answer": "Supported: a. Undecided: whether told.",
        "claims": claims,
        "runs": "2 finished",
        "missing": [],
    }
    lines = closing_lines(findings, Path("report.html"))
    assert lines[1 : 1 + MOST_OPEN] == [f"Undecided: whether {i}. Add seeds." for i in range(MOST_OPEN)]
    assert len(lines) == MOST_OPEN + 4 and " 1 more" in lines[1 + MOST_OPEN], "and a line for the one beyond"
