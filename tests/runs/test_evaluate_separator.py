"""A Hugging Face folder is evaluated on the rows, and with the loss, that transformers itself has."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import folder

from kleiber.evals.evaluation import Subject
from kleiber.evals.perplexity import Perplexity
from kleiber.runs.evaluation_subject import open_hf_subject

CONTEXT = 32
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
FAMILIES = {
    "llama": ("models/stories260K", {**SIZES, "vocab_size": 512}),
    "gpt2": ("tokenizers/gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 1024, "vocab_size": 50272}),
    "bert": ("tokenizers/bert-base-uncased", {**SIZES, "vocab_size": 30522}),
}
STORIES = [f"Once upon a time there was a fox number {i}.\nIt slept, and then it ran." for i in range(40)]


def random_model(family: str, shared: Path, out: Path) -> Path:
    """A small random model of the family, saved by transformers with a tokenizer of the family."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    tokenizer, settings = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings)
    kind = AutoModelForMaskedLM if family == "bert" else AutoModelForCausalLM
    model = kind.from_config(config)
    for parameter in model.parameters():  # as drawn, every token is as likely as any other
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shared / "data" / tokenizer / name, out / name)
    return out


def subject_of(model: Path, tmp_path: Path, *data: str) -> Subject:
    rows = [{"text": text} for text in STORIES]
    path = folder(tmp_path / "stories", train=rows, validation=rows)
    subject, sets = open_hf_subject(model, ["data=text", f"data.path={path}", f"model.context={CONTEXT}", *data], None)
    return replace(subject, data=[replace(part, of_run=True) for part in sets])


def loss_of(subject: Subject) -> float:
    return Perplexity().evaluate(subject).scores["stories"]["loss"].value


def their_rows(model: Path, before: list[int]) -> list[list[int]]:
    """Windows of CONTEXT + 1 ids of the documents end to end, as transformers encodes them, with `before` in front."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [i for text in STORIES for i in [*before, *tokenizer(text).input_ids]]
    return [ids[start : start + CONTEXT + 1] for start in range(0, len(ids) - 1, CONTEXT)]


@pytest.mark.parametrize(("family", "before"), [("llama", []), pytest.param("gpt2", [50256], marks=pytest.mark.slow)])
@torch.no_grad()
def test_causal_models_score_as_in_transformers(
    family: str, before: list[int], shared: Path, tmp_path: Path, cache_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM

    path = random_model(family, shared, tmp_path / "model")
    subject = subject_of(path, tmp_path)
    rows = their_rows(path, before)
    held_out = subject.samples("stories")
    ours = held_out.gather(np.arange(len(held_out)))
    weights = torch.ones(ours.tokens.shape) if ours.weights is None else ours.weights
    for tokens, real, row in zip(ours.tokens.tolist(), weights.bool().tolist(), rows, strict=True):
        assert [i for i, counts in zip(tokens, real, strict=True) if counts] == row
    model = AutoModelForCausalLM.from_pretrained(path)
    sums = [model(torch.tensor([row]), labels=torch.tensor([row])).loss * (len(row) - 1) for row in rows]
    expected = float(sum(sums)) / sum(len(row) - 1 for row in rows)
    assert loss_of(subject) == pytest.approx(expected, abs=1e-5)
    other = subject_of(path, tmp_path, "data.separator=eos")
    same = loss_of(other) == pytest.approx(expected, abs=1e-5)
    assert same is (family == "gpt2")


@torch.no_grad()
@pytest.mark.slow
def test_masked_models_score_as_in_transformers(shared: Path, tmp_path: Path, cache_dir: Path) -> None:
    from transformers import AutoModelForMaskedLM

    path = random_model("bert", shared, tmp_path / "model")
    subject = subject_of(path, tmp_path, "objective=mlm")
    held_out = subject.samples("stories")
    full = held_out.gather(np.arange(len(held_out) - 1))  # without the last row, which is padded
    assert full.tokens.tolist() == their_rows(path, [])[:-1]
    batch = full.map(lambda tensor: tensor[:, :-1] if tensor.dim() == 2 else tensor)
    hidden, targets = subject.objective.corrupt(batch)
    labels = batch.tokens.where(targets, -100)
    expected = float(AutoModelForMaskedLM.from_pretrained(path)(hidden, labels=labels).loss)
    loss = subject.objective(subject.model, full)
    assert float(loss.total / loss.tokens) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_stories_260k_scores_as_its_author_trained_it(shared: Path, tmp_path: Path, monkeypatch) -> None:
    from kleiber.launch.cli import main

    monkeypatch.setenv("KLEIBER_DATA", str(shared / "data"))
    monkeypatch.setenv("KLEIBER_CACHE", str(tmp_path / "cache"))
    data = ["--data", "data=tinystories", "--data", "data.config=v1-sample", "--data", "model.context=512"]
    out = tmp_path / "scores.json"
    model = str(shared / "data/models/stories260K")
    assert main(["eval", model, "--evals", "perplexity", *data, "--json", str(out)]) == 0
    scores = json.loads(out.read_text())["evals"]["perplexity"]["tinystories"]
    assert scores["loss"]["value"] == pytest.approx(
        1.52, abs=0.01
    )  # transformers, packed rows: 1.5216, and 1.7022 by </s>
    assert main(["eval", model, "--evals", "perplexity", *data, "--data", "data.separator=<unk>x"]) == 2
