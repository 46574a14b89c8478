"""The headline of a law: its error beyond the cut, what is not identified, or why it is refused."""

from kleiber.studies.laws.headline import (
    extrapolation,
    failures,
    headline,
    lost_to_naive,
    refusal,
    what_identifies,
    within_budgets,
)

from .. import ladders

LOOSE = {"value": 1.0, "lo": None, "hi": None, "identified": False}
REFUSED = {"code": "no_law", "level": "refuse", "text": "the line does better"}


def test_the_headline_of_an_identified_law_is_its_error_beyond_the_cut():
    record = ladders.law_record()
    text = headline(record)
    assert text.lower() == f"{extrapolation(record)}.".lower()
    for number in ("1e+13", "2 times", "4 larger points", "1.79%", "3.00%", "1.00% too high"):
        assert number in text
    assert "no backtest" in extrapolation(ladders.law_record(backtests=[]))


def test_parameters_that_are_not_identified_come_after_the_error():
    record = ladders.law_record()
    record["params"] |= {"A": LOOSE, "alpha": LOOSE}
    text = headline(record)
    assert text.index("1.79%") < text.index("A and alpha") and failures(ladders.law_record()) == []


def test_a_lack_of_fit_is_part_of_the_headline_without_its_numbers():
    text = "the residuals are larger than the noise of runs explains (F = 9.9, p = 0.01): observed minus predicted"
    record = ladders.law_record(verdicts=[{"code": "lack_of_fit", "level": "warn", "text": text}])
    assert failures(record) == ["the residuals are larger than the noise of runs explains"]
    assert "than the noise of runs explains." in headline(record)


def test_a_held_out_test_that_a_naive_forecast_won_is_part_of_the_headline():
    lost = {"name": "largest size", "mare": 0.0288, "naive": {"line": 0.0107, "last_rung": 0.05}}
    won = {**lost, "mare": 0.005}
    record = ladders.law_record(holdouts=[won, lost])
    assert lost_to_naive(record) == [lost]
    for text in (headline(record), within_budgets("N_opt ~ C^0.5", record)):
        assert "1.07%" in text and "2.88%" in text and "1.79%" in headline(record)
    assert "naive forecast" not in headline(ladders.law_record(holdouts=[won]))


def test_data_are_asked_for_along_the_inputs_that_identify_the_parameters():
    record = ladders.law_record()
    assert "N (now a factor of 4)" in what_identifies(record, ["A", "alpha"])
    assert "D (now" not in what_identifies(record, ["A", "alpha"])
    assert "D (now a factor of 8)" in what_identifies(record, ["E"])
    assert "16 for 5" not in what_identifies(record, ["E"])
    assert "8 for 5" in what_identifies(record | {"n": 8}, ["E"])


def test_a_refused_law_gives_the_reason_and_no_error():
    record = ladders.law_record(verdicts=[REFUSED])
    assert refusal(record) == REFUSED["text"] and refusal(ladders.law_record()) == ""
    assert REFUSED["text"] in headline(record) and "1.79%" not in headline(record)


def test_an_exponent_is_limited_to_its_budgets():
    exponent = "By parabolas at 4 budgets, N_opt ~ C^0.525"
    text = within_budgets(exponent, ladders.law_record())
    assert text.startswith(exponent) and "1e+12" in text and "2e+13" in text
    text = within_budgets(exponent, ladders.law_record(verdicts=[REFUSED]))
    assert text.index(REFUSED["text"]) < text.index("0.525")
