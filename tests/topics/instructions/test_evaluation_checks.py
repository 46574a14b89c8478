"""Texts that follow an instruction, and texts that just do not."""

import pytest

from kleiber_topics.instructions.evaluation import CHECKS, count_sentences, follows

CASES = {
    "keywords:existence": ({"keywords": ["blue", "sea"]}, "The SEA is blue.", "The sea is bluer."),
    "keywords:forbidden_words": ({"forbidden_words": ["the"]}, "Then we left.", "We left The house."),
    "length_constraints:number_words": ({"relation": "less than", "num_words": 3}, "Two words!", "One two three"),
    "length_constraints:number_sentences": ({"relation": "at least", "num_sentences": 2}, "Yes. No", "It cost 3.5."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 3}, "* a\n- **b**\n * **c**", "* a\n**b**\n-c"),
    "change_case:english_lowercase": ({}, "all of it.", "Nearly all."),
    "change_case:english_capital": ({}, "ALL OF IT.", "NEARLY aLL."),
    "startend:end_checker": ({"end_phrase": "thank you."}, 'I say "Thank you."', "thank you. Bye."),
    "startend:quotation": ({}, ' "yes" ', '"yes" he said'),
    "punctuation:no_comma": ({}, "one; two", "one, two"),
}


@pytest.mark.parametrize("name", CHECKS)
def test_each_check(name):
    options, right, wrong = CASES[name]
    assert follows(right, name, options) and not follows(wrong, name, options) and not follows(" \n", name, options)


def test_at_least_includes_the_number_and_less_than_does_not():
    name = "length_constraints:number_words"
    assert follows("a b", name, {"relation": "at least", "num_words": 2})
    assert not follows("a b", name, {"relation": "less than", "num_words": 2})


def test_an_end_phrase_may_be_a_quotation():
    assert follows('She asked: "Is that all?"', "startend:end_checker", {"end_phrase": 'asked: "Is that all?"'})
    assert not follows('"Is that all?" she asked', "startend:end_checker", {"end_phrase": '"Is that all?"'})


@pytest.mark.parametrize(("text", "count"), [("One. Two! Three?", 3), ("One", 1), ("Really?! Yes...", 2), ("...", 1)])
def test_sentences(text, count):
    assert count_sentences(text) == count


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("keywords:rhyme", {}, "keywords:rhyme has no check here.*keywords:existence"),
        ("keywords:existence", {"keywords": None}, "kwargs of keywords:existence"),
        ("startend:end_checker", {}, "kwargs of startend:end_checker.*end_phrase"),
        ("length_constraints:number_words", {"relation": "about", "num_words": 1}, "relation=about must be"),
    ],
)
def test_what_cannot_be_checked_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        follows("text", name, options)
