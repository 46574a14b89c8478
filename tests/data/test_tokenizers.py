"""Tokenizers are exact and count the bytes of every token; those of Hugging Face models are read from their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from odd_texts import ODD, noise

from kleiber.data.text import Text
from kleiber.data.tokenizers import BPE, Bytes, load_pretrained, train_bpe


def test_bytes_are_exact() -> None:
    tokenizer = Bytes()
    for text in ODD + noise(100):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.token_bytes[tokenizer.encode(text)].sum() == len(text.encode())
    assert tokenizer.vocab_size == 272


def test_bpe_is_exact_and_counts_bytes(bpe: BPE) -> None:
    for text in ODD + noise(200):
        ids = bpe.encode(text)
        assert bpe.decode(ids) == text
        assert bpe.token_bytes[ids].sum() == len(text.encode())
        assert not {bpe.eos, bpe.mask} & set(ids)
    assert bpe.num_tokens == 400 and bpe.vocab_size == 400


def test_tiktoken_gives_the_ids_of_tokenizers(bpe: BPE, tiny: str) -> None:
    from tokenizers import Tokenizer

    slow = Tokenizer.from_file(str(bpe.path))
    texts = [text for text in ODD if "<|" not in text] + noise(300) + [Path(tiny).read_text(), "y" * 1000, " " * 100]
    for text, ids in zip(texts, bpe.encode_many(texts), strict=True):
        assert slow.encode(text).ids == ids.tolist(), text


def test_bpe_is_the_same_when_trained_again(bpe: BPE, tmp_path: Path, tiny: str) -> None:
    again = train_bpe([Text(tiny).source()], 400, tmp_path)
    assert again.hash == bpe.hash
    assert train_bpe([Text(tiny).source()], 300, tmp_path).hash != bpe.hash


def test_a_vocabulary_too_small_for_the_bytes_is_refused(tmp_path: Path, tiny: str) -> None:
    with pytest.raises(ValueError, match=r"data\.vocab_size=100"):
        train_bpe([Text(tiny).source()], 100, tmp_path)


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
