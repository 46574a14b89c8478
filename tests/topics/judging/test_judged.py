"""Judged answers: a planted model writes them and annotators choose; other judgments are of the same answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evals.planted import planted

from kleiber.data.tokenizers import Bytes
from kleiber_topics.judging.annotators import WordShare
from kleiber_topics.judging.judged import Judged
from kleiber_topics.judging.judgments import read_judgments

TASTE = WordShare(["good"])
STORIES = [{"text": f"Story {chr(97 + i)} begins here. It goes on. " * 2} for i in range(26)]


class Writer:
    """Gives each prompt a good and a bad answer, in a random order, and finds the good one likelier."""

    model, tokenizer = planted(a=0.5), Bytes()

    def __init__(self) -> None:
        self.written = 0
        self.answers = self

    def write(self, prompts, each, tokens, temperature, *, seed):
        self.written += len(prompts)
        random = np.random.default_rng(seed)
        pairs = [[f" good {i}", f" bad {i}"] if i % 4 else [f" odd {i}", f" sad {i}"] for i in range(len(prompts))]
        return [pair if random.random() < 0.5 else pair[::-1] for pair in pairs]

    def log_probs(self, dialogs):
        return np.array([[-1.0 if "good" in dialog[-1].content else -5.0, 2.0] for dialog in dialogs])


@pytest.fixture
def stories(tmp_path: Path, cache: Path) -> str:
    path = tmp_path / "stories.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in STORIES))
    return str(path)


def judgments(writer: Writer, stories: str, split: str = "train", **keys):
    options = {"pairs": 16, "judgments": 12, "prompt_tokens": 16, **keys}
    corpus = Judged(lambda _: writer, "m", TASTE, stories, **options).prepare(64)  # type: ignore[arg-type]
    folder = max(corpus.folder.glob("judged-*/train.jsonl"), key=lambda path: path.stat().st_mtime_ns).parent
    return corpus, read_judgments(folder / f"{split}.jsonl")


def right(rows) -> list[bool]:
    return [TASTE.utility(row.to_json()["chosen"]) > TASTE.utility(row.to_json()["rejected"]) for row in rows]


def test_annotators_choose_by_their_taste_and_ties_are_no_pairs(stories):
    corpus, rows = judgments(Writer(), stories)
    decided = [row for row in rows if row.choice != "tie"]
    assert len(rows) == 12 and 0 < len(decided) < 12 and all(right(decided))
    assert len(corpus.train) == len(decided) and len(corpus.validation["judged"]) == 8
    row = corpus.train.gather(np.array([0]))
    assert not bytes(row.tokens[0].clamp(max=255).to(torch.uint8).tolist()).startswith(b"<|")  # plain text


def test_noise_flips_judgments_of_the_training_split_alone(stories):
    _, rows = judgments(Writer(), stories, noise=1.0)
    assert not any(right([row for row in rows if row.choice != "tie"]))
    _, held_out = judgments(Writer(), stories, "validation", noise=1.0)
    assert all(TASTE.utility(row.to_json()["chosen"]) >= TASTE.utility(row.to_json()["rejected"]) for row in held_out)
    assert all(row.choice != "tie" for row in held_out)  # decided by a coin


def test_changed_prompts_are_answered_anew(stories):
    writer = Writer()
    judgments(writer, stories)
    Path(stories).write_text("".join(json.dumps({"text": row["text"].replace("o", "a")}) + "\n" for row in STORIES))
    _, rows = judgments(writer, stories)
    assert writer.written == 48 and not any("o" in row.comparison.prompt for row in rows)


@pytest.mark.slow
def test_runs_that_differ_in_judgments_share_answers_and_validation(stories):
    writer = Writer()
    assert len(judgments(writer, stories, max_bytes=150)[0].train) < len(judgments(writer, stories)[0].train)
    few, _ = judgments(writer, stories, judgments=4)
    more, _ = judgments(writer, stories, judgments=12, noise=0.5)
    assert writer.written == 24 and few.validation["judged"].num_tokens == more.validation["judged"].num_tokens
    judgments(writer, stories, seed=1)
    assert writer.written == 48


def test_the_pairs_of_the_greatest_difference_in_likelihood_are_judged_first(stories):
    _, rows = judgments(Writer(), stories, select="likelihood", judgments=8)
    assert all("good" in row.comparison.left + row.comparison.right for row in rows)
    _, rows = judgments(Writer(), stories, select="random", judgments=12)
    assert not all("good" in row.comparison.left + row.comparison.right for row in rows)


def test_the_pairs_that_a_policy_is_least_sure_of_are_judged_first(stories):
    class Policy(Writer):
        def log_probs(self, dialogs):  # sure of the pairs of a good answer, and unchanged on the others
            return super().log_probs(dialogs) * 3

    options = {"pairs": 16, "judgments": 4, "prompt_tokens": 16, "select": "margin", "policy": "p"}
    taste = WordShare(["good", "odd"])
    data = Judged(lambda path: Policy() if path == "p" else Writer(), "m", taste, stories, **options)  # type: ignore
    corpus = data.prepare(64)
    (folder,) = corpus.folder.glob("judged-*/train.jsonl")
    assert all("odd" in row.comparison.left + row.comparison.right for row in read_judgments(folder))


@pytest.mark.slow
def test_several_annotators_take_turns_with_biases_of_their_own(stories):
    _, rows = judgments(Writer(), stories, annotators=3)
    assert [row.judge for row in rows] == [f"simulated-{i % 3}" for i in range(12)]
    _, rows = judgments(Writer(), stories, first=100.0)
    assert {row.choice for row in rows} == {"left"}
    _, rows = judgments(Writer(), stories, longer=1000.0)
    assert all(len(row.to_json()["chosen"]) >= len(row.to_json()["rejected"]) for row in rows if row.choice != "tie")
    _, rows = judgments(Writer(), stories, disagreement=100.0)
    assert not all(right(rows))


def test_what_cannot_be_judged_is_refused(stories, monkeypatch):
    with pytest.raises(ValueError, match=r"data.judgments=20 must be at most data.pairs=16"):
        judgments(Writer(), stories, judgments=20)
    for keys in ({"select": "margin"}, {"policy": "p"}):
        with pytest.raises(ValueError, match="must go together"):
            judgments(Writer(), stories, **keys)
    with pytest.raises(ValueError, match=r"different prompts, and data.pairs=90000 needs 108000"):
        judgments(Writer(), stories, pairs=90_000)

    def fail(path: str) -> SimpleNamespace:
        raise ValueError(f"{path} is no run")

    with pytest.raises(ValueError, match=r"data.model: m is no run"):
        Judged(fail, "m", TASTE, stories).prepare(64)  # type: ignore[arg-type]
