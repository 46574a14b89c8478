"""Rows of judgments, win rates, and Krippendorff's alpha against published worked examples."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from kleiber.data.preference import Preference
from kleiber.data.unpaired import Unpaired
from kleiber_topics.judging.judgments import (
    Comparison,
    Judgment,
    agreement,
    append_judgments,
    krippendorff_alpha,
    read_judgments,
    wilson_interval,
    win_rate,
    write_judgments,
)

# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", sections B and C.
TWO = ["0100000010", "1110010000"]
FOUR = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def units(judges: list[str]) -> list[list[str]]:
    return [[value for value in unit if value != "."] for unit in zip(*judges, strict=True)]


def judged(item: int, choice: str, judge: str = "me", second_is_left: bool = False) -> Judgment:
    names = ("b", "a") if second_is_left else ("a", "b")
    return Judgment(Comparison(item, "p", "left answer", "right answer", *names), choice, judge, 1.5)  # type: ignore[arg-type]


def test_alpha_is_that_of_the_published_examples():
    assert krippendorff_alpha(units(TWO)) == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha(units(FOUR)) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_that_of_the_reference_library():
    reference = pytest.importorskip("krippendorff")
    data = np.random.default_rng(0).integers(0, 4, (3, 40)).astype(float)
    data[0, :5] = np.nan
    ours = krippendorff_alpha([[v for v in unit if not math.isnan(v)] for unit in data.T])
    assert ours == pytest.approx(reference.alpha(reliability_data=data, level_of_measurement="nominal"))


def test_alpha_is_1_for_perfect_agreement_and_about_0_for_random_judges():
    random = np.random.default_rng(0)
    assert krippendorff_alpha([[v, v, v] for v in random.integers(0, 2, 30).tolist()]) == 1
    assert abs(krippendorff_alpha(random.integers(0, 2, (2000, 2)).tolist())) < 0.05
    assert math.isnan(krippendorff_alpha([[1], [2]])) and math.isnan(krippendorff_alpha([[1, 1]]))


def test_agreement_compares_models_not_sides_and_has_an_interval():
    choices = np.random.default_rng(1).choice(["left", "right"], 60).tolist()
    opposite = {"left": "right", "right": "left"}
    rows = [judged(i, choice) for i, choice in enumerate(choices)]
    rows += [judged(i, opposite[choice], "other", second_is_left=True) for i, choice in enumerate(choices)]
    perfect = agreement(rows)
    assert perfect is not None and (perfect.value, perfect.lo, perfect.hi, perfect.n) == (1, 1, 1, 60)
    noisy = agreement(rows + [judged(i, "tie", "third") for i in range(60)])
    assert noisy is not None and noisy.lo < noisy.value < noisy.hi < 1
    assert agreement(rows[:60]) is None


def test_a_later_judgment_of_a_judge_replaces_the_earlier_one_in_the_agreement():
    rows = [judged(0, "left"), judged(0, "right"), judged(0, "right", "x"), judged(1, "left"), judged(1, "left", "x")]
    estimate = agreement(rows)
    assert estimate is not None and estimate.value == 1


def test_the_win_rate_counts_prompts_equally_and_ties_as_half():
    rows = [judged(0, "right"), judged(0, "left", "x"), judged(1, "right"), judged(2, "tie"), judged(3, "both bad")]
    estimate = win_rate(rows, "b")
    assert estimate is not None and estimate.value == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4) and estimate.n == 4
    assert win_rate([judged(0, "left", second_is_left=True)], "b").value == 1  # type: ignore[union-attr]
    assert win_rate([], "b") is None


def test_wilsons_interval():
    """Of 81 of 263 at 95 % Wilson's is (.2553, .3662) (Newcombe 1998, table I); ours is at 90 %, and inside of it."""
    lo, hi = wilson_interval(81 / 263, 263)
    assert 0.2553 < lo < 81 / 263 < hi < 0.3662 and lo == pytest.approx(0.2633, abs=1e-3)
    assert wilson_interval(1.0, 10)[1] == 1 and wilson_interval(1.0, 10)[0] == pytest.approx(0.787, abs=1e-3)


def test_rows_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "j.jsonl"
    rows = [judged(0, "left"), judged(1, "tie"), judged(2, "both bad", "x")]
    for row in rows:
        append_judgments(path, [row])
    assert read_judgments(path) == rows and read_judgments(tmp_path / "none") == []
    write_judgments(path, rows[1:])
    assert read_judgments(path) == rows[1:]
    assert (
        rows[0].to_json()["chosen"] == "left answer"
        and rows[1].to_json()["chosen"] == rows[1].to_json()["rejected"] == ""
    )


def test_a_line_that_a_kill_cut_is_left_out_and_replaced_by_the_next_row(tmp_path):
    path = tmp_path / "j.jsonl"
    append_judgments(path, [judged(0, "left")])
    path.write_bytes(path.read_bytes() + b'{"item": 1, "pro')
    assert [j.comparison.item for j in read_judgments(path)] == [0]
    append_judgments(path, [judged(1, "right")])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))  # a kill may cut the line break alone
    append_judgments(path, [judged(2, "tie")])
    assert [j.comparison.item for j in read_judgments(path)] == [0, 1, 2]


def test_a_line_that_a_kill_cut_within_a_character_is_left_out_and_one_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    append_judgments(path, [judged(0, "left")])
    path.write_bytes(path.read_bytes() + '{"item": 1, "prompt": "é'.encode()[:-1])
    assert [j.comparison.item for j in read_judgments(path)] == [0]
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match="line 2 is no judgment"):
        read_judgments(path)


def test_a_row_that_is_no_judgment_is_refused_by_its_line(tmp_path):
    path = tmp_path / "j.jsonl"
    append_judgments(path, [judged(0, "left")])
    path.write_text(path.read_text().replace('"left"', '"up"', 1) + "\n{}\n")
    with pytest.raises(ValueError, match=r"line 1 is no judgment of kleiber judge: choice='up' must be one of left"):
        read_judgments(path)


def test_judgments_are_pairs_as_they_are_and_ties_are_left_out(tmp_path, cache):
    rows = [
        Judgment(Comparison(i, f"p{i}", f" l{i}", f" r{i}", "a", "b", "plain"), choice, "me")
        for i, choice in enumerate([*["left", "right"] * 10, "tie", "both bad"])
    ]
    write_judgments(tmp_path / "j.jsonl", rows)
    corpus = Preference(str(tmp_path / "j.jsonl")).prepare(32)
    assert len(corpus.train) + len(corpus.validation["j"]) == 20
    batch = corpus.train.gather(np.array([0]))
    chosen, rejected = (bytes(i for i in b.tokens[0].tolist() if i < 256).decode() for b in (batch, batch.counterpart))
    number = int(re.search(r"\d+", chosen)[0])
    assert (chosen, rejected) == (
        (f"p{number} l{number}", f"p{number} r{number}") if number % 2 == 0 else
        (f"p{number} r{number}", f"p{number} l{number}")
    )  # fmt: skip


def test_judgments_are_two_answers_each_and_both_bad_ones_are_undesirable(tmp_path, cache):
    pairs = [Comparison(i, f"p{i}", f" l{i}", f" r{i}", "a", "b", "plain") for i in range(80)]
    choices = ["left", "right", "tie", "both bad"] * 20
    write_judgments(tmp_path / "j.jsonl", [Judgment(p, c, "me") for p, c in zip(pairs, choices, strict=True)])
    corpus = Unpaired(str(tmp_path / "j.jsonl"), tokenizer="bytes").prepare(32)
    samples = [corpus.train, corpus.rows()["validation"]]
    batches = [part.gather(np.arange(len(part))) for part in samples]
    texts = {
        bytes(i for i in row.tolist() if i < 256).decode(): float(label)
        for batch in batches
        for row, label in zip(batch.tokens, batch.labels, strict=True)
    }
    wanted = {"left": (1, 0), "right": (0, 1), "both bad": (0, 0)}
    expected = {}
    for pair, choice in zip(pairs, choices, strict=True):
        if choice in wanted:
            expected |= {pair.prompt + pair.left: wanted[choice][0], pair.prompt + pair.right: wanted[choice][1]}
    assert texts == expected
