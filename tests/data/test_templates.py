"""Templates over columns: what they read, fill and refuse."""

import pytest

from kleiber.data.templates import Template

ROW = {
    "en": "a",
    "n": 3,
    "list": ["x", "y"],
    "pair": {"text": ["t"], "start": [0]},
    "none": None,
    "more": ["p", "q", "r"],
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("Translate: {en}", ["Translate: a"]), ("{n} {none}|", ["3 |"]), ("{{{en}}}\\n", ["{a}\n"]),
        ("<{list}>", ["<x>", "<y>"]), ("{pair[text]}", ["t"]), ("{en}{list}{en}", ["axa", "aya"]),
    ],
)  # fmt: skip
def test_a_template_is_filled_for_each_entry_of_its_lists(text, filled):
    assert Template.parse("data.target", text).fill_each(ROW) == filled


@pytest.mark.parametrize("text", ["{", "{en", "}", "{}", "{en.upper}", "{en!r}", "{en:>9}", "no column", ""])
def test_what_is_no_template_is_refused_with_its_key(text):
    with pytest.raises(ValueError, match=r"data\.prompt="):
        Template.parse("data.prompt", text)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\{list\} 2, \{more\} 3"):
        Template.parse("data.target", "{list} {more}").fill_each(ROW)
    for text in ("{pair}", "{pair[nothing]}", "{en[text]}"):
        with pytest.raises(ValueError, match=r"\{" + text[1:3]):
            Template.parse("data.target", text).fill_each(ROW)


def test_columns_and_what_surrounds_a_field():
    template = Template.parse("data.prompt", "Q: {en}\\nP: {pair[text]}\\n{en}")
    assert template.columns == ["en", "pair"] and template.fields == ["en", "pair[text]"]
    values = {"en": "q", "pair[text]": "passage"}
    before, after = template.fill_around("pair[text]", values)
    assert (before, after) == ("Q: q\nP: ", "\nq") and before + "passage" + after == template.fill(values)
