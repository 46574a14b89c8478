"""The figure has the strongest words of both groups, and fills those that differ."""

from kleiber_topics.bias.associations import MOST, association_chart


def test_the_strongest_words_of_both_groups_are_shown():
    rows = [
        {"term": f"w{n}", "count": 9, "log_odds": 50.0 - n, "lo": 49.0 - n, "hi": 51.0 - n, "q": 0.01 * n}
        for n in range(100)
    ]
    spec = association_chart(rows, ("he", "she"), 0.1).to_dict()
    drawn = next(part for part in spec["datasets"].values() if len(part) > 1)
    assert len(drawn) == MOST and [drawn[0]["term"], drawn[-1]["term"]] == ["w0", "w99"]
    assert [row["hollow"] for row in drawn[:12]] == [False] * 11 + [True]
