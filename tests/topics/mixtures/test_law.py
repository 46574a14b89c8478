"""The law of mixtures: form by cross-validation, verdicts, and tables that it refuses with row and column."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from kleiber.studies.laws.table_laws import Settings, compare, rank_correlation
from kleiber_topics.mixtures.law import cross_validate, domains_of, judge, lines, mixture, predicted_losses
from kleiber_topics.mixtures.prediction import predict_rows

from .tables import mixtures

ROLES = {"w": "w_*", "loss": "loss_0"}
QUICK = Settings(bootstrap=60)


@pytest.mark.parametrize("name", ["ridge", "exponential"])
def test_cross_validation_chooses_the_form_of_the_table(name):
    frame, _ = mixtures(rows=120, form=name, noise=0.002, seed=3)
    record = mixture().fit_table(frame, ROLES, QUICK)
    assert record["form"] == name and record["chosen_by"] == "cross-validation"
    assert record["cross_validation"][name] == min(record["cross_validation"].values()) < 0.004
    assert record["n"] == 120 and record["columns"] == {key: f"w_{key}" for key in "abcd"} and not record["refused"]
    assert any(line.startswith("gain over the mean of the table") for line in lines(record))


def test_losses_of_several_columns_are_averaged():
    frame, _ = mixtures(losses=3)
    record = mixture().fit_table(frame, {"w": "w_*", "loss": "loss_*"}, Settings("linear", bootstrap=0))
    rows, measured = predict_rows(record, frame, {"w": "w_*", "loss": "loss_*"})
    assert record["losses"] == ["loss_0", "loss_1", "loss_2"] and record["draws"] == []
    assert measured == pytest.approx(frame.filter(like="loss_").mean(axis=1))
    assert rows[0]["lo"] is None and rows[0]["hi"] is None


def test_size_and_tokens_are_inputs_where_they_are_mapped():
    frame, _ = mixtures(rows=100, noise=0.0)
    N = np.geomspace(1e6, 1e9, 100)
    frame = frame.assign(N=N, loss_0=frame["loss_0"] - 0.05 * np.log(N))
    record = mixture().fit_table(frame, {**ROLES, "N": "N"}, Settings("ridge", bootstrap=0))
    assert record["inputs"] == {"N": pytest.approx(1e9)}
    assert record["params"][0][-1] == pytest.approx(-0.05, abs=5e-3)


def test_a_best_mixture_outside_the_table_and_of_one_domain_is_a_warning():
    rng = np.random.default_rng(0)
    weights = np.column_stack([rng.uniform(0, 0.2, 40), rng.uniform(0.2, 0.4, 40)])
    frame = pd.DataFrame({"w_a": weights[:, 0], "w_b": weights[:, 1], "w_c": 1 - weights.sum(1)})
    frame["loss"] = 3 - 0.5 * frame["w_a"] + rng.normal(0, 0.01, 40)
    record = mixture().fit_table(frame, {"w": "w_*"}, Settings("linear", bootstrap=60))
    assert {"extrapolated", "corner"} <= {verdict.code for verdict in judge(record)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frame: frame.assign(w_b=frame["w_b"].where(frame.index != 7, -0.1)), ["row 7", "'w_b'", ">= 0"]),
        (lambda frame: frame.assign(w_c=frame["w_c"] + 0.3 * (frame.index == 5)), ["row 5", "'w_a' to 'w_d'", "1.3"]),
        (lambda frame: frame.assign(loss_0=frame["loss_0"].where(frame.index != 9)), ["row 9", "'loss_0'", "finite"]),
        (lambda frame: frame[:6], ["6 rows", "row 5", "at least 7"]),
        (lambda frame: frame.assign(w_a=0.1, w_b=0.2, w_c=0.3, w_d=0.4), ["all equal", "row 0"]),
        (
            lambda frame: frame.assign(w_a=0.5 * frame["w_a"], w_b=0.5 - 0.5 * frame["w_a"], w_c=0.3, w_d=0.2),
            ["on a line", "row 0 to row 47", "column 'w_"],
        ),
    ],
)  # fmt: skip
def test_bad_tables_are_refused_with_row_and_column(change, words):
    with pytest.raises(ValueError) as error:
        mixture().fit_table(change(mixtures()[0]), ROLES, QUICK)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_pattern_must_match_two_columns():
    frame, _ = mixtures()
    assert domains_of(frame, {"w": "w_*"}) == {key: f"w_{key}" for key in "abcd"}
    for pattern in ("w_a", "v_*", "w_a*"):
        with pytest.raises(ValueError, match="at least two domains"):
            domains_of(frame, {"w": pattern})
    with pytest.raises(ValueError, match="--form 'cubic'"):
        mixture().fit_table(frame, ROLES, Settings("cubic"))


def test_every_row_is_held_out_once():
    frame, _ = mixtures(noise=0.0, form="linear")
    weights, loss = frame.filter(like="w_").to_numpy(), frame["loss_0"].to_numpy()[None]
    assert cross_validate("linear", weights, loss, 4) < 1e-9


@pytest.mark.slow
def test_mixtures_of_regmix_are_ranked_as_published(shared):
    folder = shared / "laws" / "regmix"
    if not folder.is_dir():
        pytest.skip("needs ../shared/laws beside the checkout")
    roles = {"w": "w_*", "loss": "loss_pile_cc"}
    train, small, large = (pd.read_csv(folder / f"{name}.csv") for name in ("train_1m", "test_1m", "test_60m"))
    ranks = {}
    for form in (None, "linear"):
        record = mixture().fit_table(train, roles, Settings(form, bootstrap=100))
        for frame in (small, large):
            rows, measured = predict_rows(record, frame, roles)
            rank = rank_correlation(np.array([row["value"] for row in rows]), measured)
            ranks[record["form"], len(ranks) % 2] = rank["value"]
            assert rank["lo"] < rank["value"] < rank["hi"]
        own = compare(*predict_rows(record, small, roles))
        assert 0.84 <= own["coverage"] <= 0.95
    assert ranks["ridge", 0] >= 0.98 and ranks["ridge", 1] >= 0.97
    assert ranks["linear", 1] == pytest.approx(0.893, abs=0.002)


def test_predictions_of_a_panel_are_those_of_the_form_fitted_to_the_other_arm():
    frame, _ = mixtures(rows=40, noise=0.0, form="exponential", losses=2)
    weights = frame.filter(like="w_").to_numpy()
    runs = [fake(f"r{at}", dict(zip("abcd", row.tolist(), strict=True))) for at, row in enumerate(weights)]
    table = pd.DataFrame([
        {"run": f"r{at}", "arm": "held_out" if at >= 30 else "fitted", "data": f"loss_{i}", "measure": "loss",
         "metric": "loss", "value": row[f"loss_{i}"], "seed": 0}
        for at, row in frame.iterrows() for i in range(2)
    ])  # fmt: skip
    shown = predicted_losses(table, runs).pivot_table(index="run", columns="measure", values="value", sort=False)
    assert shown["mean_loss"].to_numpy() == pytest.approx(frame.filter(like="loss_").mean(axis=1).to_numpy())
    assert shown["predicted"].to_numpy() == pytest.approx(shown["mean_loss"].to_numpy(), abs=1e-6)
    few = predicted_losses(table[table["run"].isin([f"r{at}" for at in range(25, 40)])], runs)
    assert "predicted" not in set(few["measure"]) and "mean_loss" in set(few["measure"])


def fake(name, parts):
    """A run of a mixture."""
    return SimpleNamespace(name=name, config={"data": {"parts": parts}})
