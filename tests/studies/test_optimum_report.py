"""A hyperparameter law in words: the headline has exponents or why there are none, the page shows the optima."""

import pytest

from kleiber.studies import law_report
from kleiber.studies.fitted_law import fit
from kleiber.studies.optimum_report import headline, lines, table
from tests.studies.laws.sweeps import ROLES, sweep


@pytest.fixture(scope="module")
def law():
    return fit(sweep(sizes=[1e7, 3e7, 1e8], ratios=[10, 80]), "hyperparameter", map=ROLES, bootstrap=40)


def test_the_headline_and_lines_have_the_numbers_of_the_record(law):
    exponent, test = law.derived["lr_N"], law.record["backtests"][0]
    assert f"learning rate ~ N^{exponent['value']:.3f} [{exponent['lo']:.3f}" in headline(law.record)
    assert f"{test['mare']:.2%}" in headline(law.record)
    assert any("joint fit: batch_D" in line for line in lines(law.record))
    refused = fit(sweep(sizes=[1e7]), "hyperparameter", map=ROLES, bootstrap=0)
    assert "there are 3" in headline(refused.record)


@pytest.mark.slow
def test_the_page_lists_every_group(law, tmp_path):
    assert len(table(law.record, law.form)) == 6 and table(law.record, None) == []
    law_report.write(tmp_path / "page.html", tmp_path, law.form, {"": law.record}, {"": law.rows}, None)
    page = (tmp_path / "page.html").read_text()
    assert "Optima" in page and "quadratic surface" in page and "Loss above the best run vs learning rate" in page
