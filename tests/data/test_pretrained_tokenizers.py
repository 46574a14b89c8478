"""Tokenizers of Hugging Face models are read from their files, which may be damaged or a stranger's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from odd_texts import ODD, noise

from kleiber.data.pretrained_tokenizers import MOST_IDS, load_pretrained
from kleiber.data.tokenizers import BPE


def test_gpt2_is_read_from_its_folder(shared: Path) -> None:
    gpt2 = load_pretrained(str(shared / "data" / "tokenizers" / "gpt2"))
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.eos, gpt2.mask, gpt2.vocab_size) == (50256, 50257, 50272)
    for text in [text for text in ODD if "<|" not in text] + noise(50):
        assert gpt2.decode(gpt2.encode(text)) == text
        assert gpt2.token_bytes[gpt2.encode(text)].sum() == len(text.encode())


def test_bert_and_llama_tokenizers_have_their_own_end_of_text(shared: Path) -> None:
    bert = load_pretrained(str(shared / "data" / "tokenizers" / "bert-base-uncased"))
    assert (bert.eos, bert.mask) == (102, 103)
    assert not {101, 102} & set(bert.encode("unaffable mice"))
    assert bert.decode(bert.encode("unaffable mice")) == "unaffable mice"
    llama = load_pretrained(str(shared / "data" / "models" / "stories260K"))
    assert llama.decode(llama.encode("Once upon a time")) == "Once upon a time"


def test_a_copy_below_kleiber_data_is_found(tmp_path: Path, bpe: BPE, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "someone" / "mine"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(bpe.path.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}))
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path))
    tokenizer = load_pretrained("someone/mine")
    assert tokenizer.encode("The keeper weighed") == bpe.encode("The keeper weighed")


def test_a_tokenizer_that_does_not_exist_is_named(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.tokenizer=no-one/nothing.*KLEIBER_DATA=DIR"):
        load_pretrained("no-one/nothing")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        load_pretrained(str(Path(__file__).parent))


def test_damaged_files_of_a_tokenizer_are_named(tmp_path: Path, bpe: BPE) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"/tokenizer\.json"):
        load_pretrained(str(tmp_path))
    (tmp_path / "tokenizer.json").write_bytes(bpe.path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"/tokenizer_config\.json"):
        load_pretrained(str(tmp_path))


def folder_of(tmp_path: Path, bpe: BPE, **changes: object) -> str:
    """Writes a tokenizer whose tokenizer.json has other values by dotted key; returns its folder."""
    content = json.loads(bpe.path.read_text())
    for key, value in changes.items():
        content[key] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    return str(tmp_path)


def test_a_pattern_at_the_limit_of_the_engine_is_refused(tmp_path: Path, bpe: BPE) -> None:
    """The engine panics, which is no Exception and would pass every handler of errors."""
    pattern = {"Regex": "(((x+x+)+)+)+y"}
    splitter = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    tokenizer = load_pretrained(folder_of(tmp_path, bpe, pre_tokenizer=splitter))
    for encode in (tokenizer.encode, tokenizer.encode_for_model, lambda text: tokenizer.encode_many([text])):
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
