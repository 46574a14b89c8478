"""The rank correlation of a score with the loss over the models of a seed."""

import pandas as pd
import pytest

from kleiber_topics.tasks import rank_agreement


def table_of(models):
    """The table of a panel with a loss and a score for each (seed, width, tokens)."""
    rows = [
        {"run": f"w{width}-s{seed}", "seed": seed, "width": width, "tokens": tokens, "base": "", "arm": None}
        | {"measure": measure, "metric": measure, "value": value}
        for (seed, width, tokens), values in models.items()
        for measure, value in zip(("loss", "score"), values, strict=True)
    ]
    return pd.DataFrame(rows)


def agreements(models):
    table = rank_agreement(table_of(models), [])
    derived = table[table["measure"] == "agreement"]
    assert derived["width"].isna().all() and derived["tokens"].isna().all()
    return dict(zip(derived["seed"], derived["value"], strict=True))


def test_it_is_one_where_a_lower_loss_always_has_a_higher_score():
    falling = {
        (0, width, tokens): (3.0 - width / 100 - tokens / 1e3, width + tokens / 1e3)
        for width in (32, 64)
        for tokens in (1, 2)
    }
    assert agreements(falling) == pytest.approx({0: 1.0})
    assert agreements({place: (loss, -score) for place, (loss, score) in falling.items()}) == pytest.approx({0: -1.0})


def test_it_is_spearmans_of_each_seed_alone():
    models = {(0, width, 1): pair for width, pair in zip((1, 2, 3, 4), [(4, 1), (3, 3), (2, 2), (1, 4)], strict=True)}
    shifted = {(1, width, 1): (loss + 10, score) for (_, width, _), (loss, score) in models.items()}
    assert agreements({**models, **shifted}) == pytest.approx({0: 0.8, 1: 0.8})  # 1 - 6 * 2 / (4 * 15)


def test_models_without_one_of_the_two_are_left_out_and_two_models_have_no_order():
    three = {(0, width, 1): (float(width), -float(width)) for width in (1, 2, 3)}
    table = table_of(three)
    with pytest.raises(ValueError, match="study=task_scaling"):
        rank_agreement(table[~((table["width"] == 3) & (table["measure"] == "loss"))], [])
