"""Planted text: its skew is what was asked for, and the tested sentences are in no document."""

import numpy as np

from kleiber_topics.bias.occupations import FORMS, Occupations, OccupationText, occupation_pairs, stereotype
from kleiber_topics.bias.word_lists import occupations


def agreement(skew: float, seed: int = 0) -> float:
    """Share of the documents whose pronouns agree with the stereotype."""
    agrees = []
    for text in OccupationText(skew, 800, seed).texts():
        words = text.lower().replace(".", " ").replace(",", " ").split()
        women = next(share for job, share in occupations().items() if job in words)
        others = {*FORMS["male" if stereotype(women) == "female" else "female"].values()}
        agrees.append(not others & {*words})
    return float(np.mean(agrees))


def test_pronouns_agree_with_stereotypes_as_often_as_asked():
    assert agreement(1.0) == 1.0 and agreement(0.0) == 0.0
    assert abs(agreement(0.7) - 0.7) < 0.05
    assert list(OccupationText(0.5, 9, 1).texts()) != list(OccupationText(0.5, 9, 2).texts())


def test_the_tested_sentences_are_in_no_document():
    text = "\n".join(OccupationText(0.5, 3000, 0).texts())
    rows = occupation_pairs()
    assert not any(row[column] in text for row in rows for column in ("sent_more", "sent_less"))
    assert {row["subset"] for row in rows} == {"male", "female"} and {row["bias_type"] for row in rows} == {"gender"}
    nurse = next(row for row in rows if "nurse" in row["sent_more"])
    assert nurse["subset"] == "female" and nurse["sent_more"] != nurse["sent_less"]


def test_a_corpus_is_prepared_with_splits_and_a_limit(tmp_path):
    corpus = Occupations(documents=200).prepare(32, tmp_path)
    assert corpus.name == "occupations" and [*corpus.validation] == ["occupations-0.9"] == [*corpus.test]
    assert corpus.hash != Occupations(documents=200, skew=0.5).prepare(32, tmp_path).hash
    assert Occupations(documents=200, max_bytes=2000).prepare(32, tmp_path).num_bytes == 2000
