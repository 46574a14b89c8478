"""Lists of the package and of files; every word has one counterpart."""

import pytest

from kleiber_topics.bias.word_lists import occupations, read_pairs, read_words


def test_the_lists_of_the_package_can_be_read():
    assert ("man", "woman") in read_pairs("gender", "k") and ("Tom", "Lily") in read_pairs("names", "k")
    assert occupations()["nurse"] == 0.9 and len(read_words("occupations", "k")) == len(occupations()) == 38


def test_a_file_has_an_entry_a_line(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_text("# comment\nCat,dog\n\nhen , cow\n")
    assert read_pairs(str(file), "k") == [("Cat", "dog"), ("hen", "cow")]
    assert read_words(str(file), "k") == ["cat", "hen"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n", r"data\.words=.*: the entry cat must be two words"),
        ("a,b\nB,c\n", r"data\.words=.*: the word B is in two entries"),
        ("# none\n", r"data\.words=.* has no entries"),
    ],
)
def test_a_list_that_cannot_be_swapped_is_refused(tmp_path, text, message):
    file = tmp_path / "pairs.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pairs(str(file), "data.words")
    with pytest.raises(ValueError, match=r"data\.words=nothing must be gender, names, occupations, or a file"):
        read_pairs("nothing", "data.words")
