"""The page of `kleiber fit --report`: figures for one fit or several, for any table."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from html_elements import HOSTILE, elements, shown_text

from kleiber.launch.cli import main
from kleiber.studies.law_report import intervals_by

MAP = ["--map", "N=size,D=seen,L=loss"]


@pytest.fixture
def csv(tmp_path):
    N, D = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    noise = np.random.default_rng(0).normal(0, 0.003, 25)
    rows = pd.DataFrame({"size": N, "seen": D, "loss": (1.7 + 400 * N**-0.34 + 400 * D**-0.28) * np.exp(noise)})
    combined = pd.concat([rows.assign(kind="a"), rows.assign(kind="b", loss=1.1 * rows["loss"])])
    combined.to_csv(tmp_path / "t.csv", index=False)
    return str(tmp_path / "t.csv")


@pytest.mark.slow
def test_a_fit_leaves_a_page_with_figures_and_no_network(csv, tmp_path, capsys):
    pytest.importorskip("altair")
    out = tmp_path / "new" / "fit.html"
    assert main(["fit", csv, *MAP, "--where", "kind == a", "--bootstrap", "60", "--report", str(out)]) == 0
    page, output = out.read_text(), capsys.readouterr().out
    assert f"report: {out}" in output.replace("\n", "")
    assert re.search(r"\d+ rows fitted, \d+ excluded", page)
    for words in ("chinchilla on t.csv", "Observed vs predicted", "Residuals", "alpha",
                  "g0-fit", "g0-backtests", "g0-profile"):  # fmt: skip
        assert words in page
    assert "src=" not in page.split("<script", 1)[0] and "minutes of processes" not in page


@pytest.mark.slow
def test_one_page_holds_a_fit_for_each_value_and_laws_without_compute_too(csv, tmp_path):
    pytest.importorskip("altair")
    out = tmp_path / "fit.html"
    assert main(["fit", csv, *MAP, "--by", "kind", "--bootstrap", "0", "--report", str(out)]) in (0, 3)
    page = out.read_text()
    assert all(words in page for words in ("Parameters, kind = a", "Parameters, kind = b", "g0-fit", "g1-fit"))
    charts = json.loads(re.findall(r"^const specs = (.*);$", page, re.MULTILINE)[0])
    titles = {name: str(chart["title"]) for name, chart in charts.items()}
    assert len(titles) > 8 and all(f"kind = {'ab'[int(name[1])]}" in title for name, title in titles.items()), titles
    power = ["--law", "power", "--map", "C=seen,L=loss", "--where", "kind == a"]
    assert main(["fit", csv, *power, "--bootstrap", "0", "--report", str(out)]) in (0, 3)
    assert "power on t.csv" in out.read_text()


@pytest.mark.slow
def test_the_page_shows_the_fit_without_the_suspects_and_what_was_fixed(csv, tmp_path):
    pytest.importorskip("altair")
    rows = pd.read_csv(csv)
    rows.loc[12, "loss"] *= 1.2
    rows.to_csv(csv, index=False)
    out = tmp_path / "fit.html"
    options = ["--where", "kind == a", "--bootstrap", "0", "--report", str(out)]
    assert main(["fit", csv, *MAP, *options, "--fix", "E=1.7"]) in (0, 3)
    page = out.read_text()
    assert "Sensitivity to suspects" in page and "<td>fixed</td>" in page


@pytest.mark.slow
def test_the_page_of_a_table_without_compute_has_its_cuts_along_the_size(tmp_path):
    pytest.importorskip("altair")
    N, X = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 6), 2.0 ** np.arange(5)))
    loss = 14 * N**-0.087 * X**-0.02 * np.exp(np.random.default_rng(0).normal(0, 0.002, 30))
    pd.DataFrame({"N": N, "X": X, "L": loss}).to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "fit.html"
    main(["fit", str(tmp_path / "t.csv"), "--law", "routed", "--bootstrap", "0", "--report", str(out)])
    page = out.read_text()
    assert "parameters N at the cut" in page and "backtest at N = " in page and "compute at the cut" not in page


def test_without_the_extra_it_says_what_to_install_before_it_fits(csv, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "altair", None)
    assert main(["fit", csv, *MAP, "--report", str(tmp_path / "fit.html")]) == 2
    assert "pip install 'kleiber[report]'" in capsys.readouterr().err


@pytest.mark.slow
def test_hostile_groups_columns_and_file_names_add_no_element_to_the_page(csv, tmp_path):
    pytest.importorskip("altair")
    pages = {}
    for name, groups in {"harmless": ("x", "y"), "hostile": (HOSTILE, "</script><script>alert(1)</script>")}.items():
        rows, table = pd.read_csv(csv), tmp_path / name / f"{groups[0].replace('/', '')}.csv"
        table.parent.mkdir()
        rows.assign(kind=rows["kind"].map(dict(zip("ab", groups, strict=True)))).to_csv(table, index=False)
        out = tmp_path / f"{name}.html"
        assert main(["fit", str(table), *MAP, "--by", "kind", "--bootstrap", "0", "--report", str(out)]) in (0, 3)
        pages[name] = out.read_text(encoding="utf-8")
    assert elements(pages["hostile"]) == elements(pages["harmless"])
    assert f"Parameters, kind = {HOSTILE}" in shown_text(pages["hostile"])


@pytest.mark.slow
def test_the_page_of_a_large_table_shows_its_pooled_cells(csv, tmp_path):
    pytest.importorskip("altair")
    rows = pd.concat([pd.read_csv(csv).query("kind == 'a'")] * 240)
    rows.assign(loss=rows["loss"] * np.random.default_rng(0).normal(1, 0.01, 6000)).to_csv(csv, index=False)
    out = tmp_path / "fit.html"
    assert main(["fit", csv, *MAP, "--bootstrap", "0", "--report", str(out)]) in (0, 3)
    page = out.read_text(encoding="utf-8")
    assert "6,000 rows pooled into 25 cells" in page
    specs = json.loads(page.split("const specs = ", 1)[1].split(";\nfor", 1)[0])
    assert 25 in {len(points) for points in specs["g0-fit"]["datasets"].values()}


@pytest.mark.parametrize("method", ["cluster t", "cluster bootstrap", "bootstrap"])
def test_the_paragraph_on_methods_tells_how_often_and_from_what_was_refitted(method):
    sentence = intervals_by({"bootstrap": {"method": method, "draws": 321}})
    others = {intervals_by({"bootstrap": {"method": name, "draws": 321}}) for name in ("cluster t", "bootstrap")}
    assert "321" in sentence and len(others) == 2
    assert intervals_by({"bootstrap": None}) not in others
