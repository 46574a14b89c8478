"""A survey counts documents as they pass, and finds repetitions and languages."""

from __future__ import annotations

import importlib.util

import pytest

from kleiber.data.survey import Survey, survey_lines

ENGLISH = "The river runs to the sea, and the sea is never full of water, number"
GERMAN = "Der Fluss fließt ins Meer, und das Meer wird niemals voll davon, Nummer"


@pytest.mark.slow
def test_lengths_duplicates_languages_and_samples() -> None:
    texts = [f"{ENGLISH} {n} and {n * n}." for n in range(6)] + [f"{GERMAN} {n}" for n in range(2)] + ["short", "12"]
    near = f"{ENGLISH} 3 and 9. Indeed."
    survey = Survey()
    assert list(survey.watch(iter([*texts, texts[0], "short", near]))) == [*texts, texts[0], "short", near]
    found = survey.to_json()
    assert found["documents"] == 13 and found["longest"] == len(near) and found["duplicates"]["exact"] == 2
    assert 3 <= found["duplicates"]["near"] <= 9 and found["duplicates"]["near_of"] == 13
    assert list(found["languages"])[:2] == ["en", "de"] and sum(found["languages"].values()) == pytest.approx(1)
    assert len(set(found["samples"])) == 3 and set(found["samples"]) <= {*texts, near}
    assert any("en 6" in line or "en 7" in line for line in survey_lines(found))


def test_without_the_package_languages_are_not_identified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    survey = Survey()
    list(survey.watch(iter(["a text"])))
    assert survey.languages() is None
    assert any("kleiber[languages]" in line for line in survey_lines(survey.to_json()))
