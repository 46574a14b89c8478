"""The columns of three data sets, their integers on the hub, and pairs of tables, of which equal sentences count."""

import pytest
from evals.subjects import table
from topics.bias.rows import CROWS, stereoset_row

from kleiber_topics.bias.items import Item, crows_item, frame, read_items, stereoset_item

PRO = [
    {"text": "The cook fed him.", "bracketed": "", "entity": "The cook", "pronoun": "him"},
    {"text": "The nurse lost her key.", "bracketed": "", "entity": "The nurse", "pronoun": "her"},
    {"text": "The nurse saw him.", "bracketed": "", "entity": "The nurse", "pronoun": "him"},
]
ANTI = [
    {"text": "The cook fed her.", "bracketed": "", "entity": "The cook", "pronoun": "her"},
    {"text": "The nurse lost his keys.", "bracketed": "", "entity": "The nurse", "pronoun": "his"},
    {"text": "The nurse saw her.", "bracketed": "", "entity": "The nurse", "pronoun": "her"},
]


def test_integers_on_the_hub_are_the_names_of_the_papers_file():
    hub = {"sent_more": "a", "sent_less": "b", "bias_type": 2, "stereo_antistereo": 1}
    assert crows_item(hub) == Item("a", "b", None, "gender", direction="antistereo")
    assert crows_item({**CROWS[0], "stereo_antistereo": None}).direction == ""
    row = stereoset_row("nurse", "gender", "A BLANK nurse", "kind", "rude", "blue")
    sentences = {"sentence": ["A rude nurse", "A kind nurse", "A blue nurse"], "gold_label": [0, 1, 2]}
    assert stereoset_item({**row, "sentences": sentences}, "s") == stereoset_item(row, "s")


def test_a_row_without_three_labels_or_a_blank_is_refused():
    row = stereoset_row("nurse", "gender", "A BLANK nurse", "kind", "rude", "blue")
    with pytest.raises(ValueError, match=r"s, row 0: sentences must have the gold_labels"):
        read_items([table("s", [{**row, "sentences": row["sentences"][:2]}])], None)
    with pytest.raises(ValueError, match=r"context='A nurse' must contain BLANK"):
        stereoset_item({**row, "context": "A nurse"}, "s")


def test_rows_of_winobias_are_paired_where_only_pronouns_differ():
    sets = [table("w/t1_pro", PRO, "w"), table("w/t1_anti", ANTI, "w")]
    items = read_items(sets, None)
    assert items == {
        "w": [
            Item("The cook fed him.", "The cook fed her.", None, "t1"),
            Item("The nurse saw him.", "The nurse saw her.", None, "t1"),
        ]
    }
    assert len(read_items(sets, 1)["w"]) == 1
    assert frame("He saw her, himself.") == "_ saw _, _."
    with pytest.raises(ValueError, match=r"got w/t1_pro without w/t1_anti"):
        read_items(sets[:1], None)
    with pytest.raises(ValueError, match=r"no row of the pro-stereotypical table"):
        read_items([table("w/t1_pro", PRO[1:2], "w"), table("w/t1_anti", ANTI[1:2], "w")], None)


@pytest.mark.slow
def test_the_shared_data_has_few_sentences_that_cannot_be_paired(shared):
    from kleiber.data.evaluation_sets import open_sets
    from kleiber.data.tokenizers import Bytes

    items = read_items(open_sets(str(shared / "data/wino_bias"), Bytes(), 64), None)["wino_bias"]
    assert len(items) == 783 and {item.bias_type for item in items} == {"type1", "type2"}
