"""Files of a tokenizer that are damaged, or a stranger's, are named and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kleiber.data.pretrained_tokenizer import MOST_IDS, load_pretrained
from kleiber.data.tokenizers import BPE


def folder_of(tmp_path: Path, bpe: BPE, **changes: object) -> str:
    """Writes a tokenizer whose tokenizer.json has other values by dotted key; returns its folder."""
    content = json.loads(bpe.path.read_text())
    for key, value in changes.items():
        content[key] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return str(tmp_path)


@pytest.mark.slow
def test_a_pattern_at_the_limit_of_the_engine_is_refused(tmp_path: Path, bpe: BPE) -> None:
    """The engine panics, which is no Exception and would pass every handler of errors."""
    pattern = {"Regex": "(((x+x+)+)+)+y"}
    splitter = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    tokenizer = load_pretrained(folder_of(tmp_path, bpe, pre_tokenizer=splitter))
    for encode in (tokenizer.encode, lambda text: tokenizer.encode_many([text])):
        with pytest.raises(ValueError, match=r"/tokenizer\.json cannot encode"):
            encode("x" * 60)
    assert tokenizer.encode("hi")


def test_a_pattern_that_the_engine_cannot_read_is_refused(tmp_path: Path, bpe: BPE) -> None:
    splitter = {"type": "Split", "pattern": {"Regex": "(" * 5000 + ")" * 5000}, "behavior": "Isolated", "invert": False}
    with pytest.raises(ValueError, match=r"/tokenizer\.json is not a valid tokenizer"):
        load_pretrained(folder_of(tmp_path, bpe, pre_tokenizer=splitter))


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, '{"a": "\x00', '"text"'])
def test_an_odd_config_of_a_tokenizer_is_named(content: str, tmp_path: Path, bpe: BPE) -> None:
    folder = folder_of(tmp_path, bpe)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"/tokenizer_config\.json"):
        load_pretrained(folder)


def test_special_tokens_of_another_type_are_not_read(tmp_path: Path, bpe: BPE) -> None:
    folder = folder_of(tmp_path, bpe)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": ["a"], "mask_token": {"content": {}}}))
    assert load_pretrained(folder).eos == bpe.eos


@pytest.mark.parametrize("rows", ["272", -1, 0, True, 1.5, MOST_IDS + 1])
def test_an_impossible_number_of_rows_is_named(rows: object, tmp_path: Path, bpe: BPE) -> None:
    folder = folder_of(tmp_path, bpe)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": rows}))
    with pytest.raises(ValueError, match=rf"/config\.json: vocab_size={rows!r}"):
        load_pretrained(folder)


def test_ids_far_beyond_a_vocabulary_are_refused(tmp_path: Path, bpe: BPE) -> None:
    """The table of bytes by id would take gigabytes."""
    model = json.loads(bpe.path.read_text())["model"]
    model["vocab"]["zzz"] = MOST_IDS
    with pytest.raises(ValueError, match=r"/tokenizer\.json has 16,777,217 token ids"):
        load_pretrained(folder_of(tmp_path, bpe, model=model))
