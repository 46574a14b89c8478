"""Tokenizers of Hugging Face models are read from their files, with the tokens that transformers puts around a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from odd_texts import ODD, noise

from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.data.tokenizers import BPE


@pytest.mark.slow
def test_gpt2_is_read_from_its_folder(shared: Path) -> None:
    gpt2 = load_pretrained(str(shared / "data" / "tokenizers" / "gpt2"))
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (gpt2.eos, gpt2.mask, gpt2.vocab_size) == (50256, 50257, 50272)
    for text in ODD + noise(50):
        assert gpt2.decode(gpt2.encode(text)) == text
        assert gpt2.token_bytes[gpt2.encode(text)].sum() == len(text.encode())


def test_bert_and_llama_tokenizers_have_their_own_end_of_text(shared: Path) -> None:
    bert = load_pretrained(str(shared / "data" / "tokenizers" / "bert-base-uncased"))
    assert (bert.eos, bert.mask) == (102, 103)
    assert not {101, 102} & set(bert.encode("unaffable mice"))
    assert bert.decode(bert.encode("unaffable mice")) == "unaffable mice"
    llama = load_pretrained(str(shared / "data" / "models" / "stories260K"))
    assert llama.decode(llama.encode("Once upon a time")) == "Once upon a time"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "separator"),
    [
        ("models/stories260K", ["<s>"]),
        ("tokenizers/gpt2", ["<|endoftext|>"]),
        ("tokenizers/bert-base-uncased", ["[CLS]", "[SEP]"]),
    ],
)
def test_documents_are_separated_as_the_files_say(folder: str, separator: list[str], shared: Path) -> None:
    tokenizer = load_pretrained(str(shared / "data" / folder))
    assert tokenizer.separator_texts == separator
    assert not tokenizer.token_bytes[tokenizer.separator.ids].any()
    assert set(separator) <= tokenizer.specials.keys()
    before = tokenizer.separator.before
    assert tokenizer.encode_prompt("a fox")[-2:] == tokenizer.encode("a fox")[-2:]
    assert (tokenizer.encode_prompt("a fox")[0] == before) is (before != tokenizer.eos)


@pytest.mark.parametrize("folder", ["models/stories260K", "tokenizers/bert-base-uncased", "bpe", "unigram"])
def test_special_tokens_that_a_text_spells_are_text(folder: str, shared: Path, tmp_path: Path, bpe: BPE) -> None:
    if folder == "unigram":
        save_unigram(tmp_path)
    elif folder == "bpe":
        (tmp_path / "tokenizer.json").write_bytes(bpe.path.read_bytes())
    tokenizer = load_pretrained(str(shared / "data" / folder if "/" in folder else tmp_path))
    assert len(tokenizer.specials) > 0
    for token in tokenizer.specials:
        text = f"the cat{token} sat{token}{token}"
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.specials.values())
        assert tokenizer.encode_many([text])[0].tolist() == ids
        decoded = tokenizer.decode(ids)
        if "bert" in folder:  # its normalizer removes capitals and spaces
            decoded, text = decoded.replace(" ", ""), text.lower().replace(" ", "")
        assert decoded == text


def save_unigram(folder: Path) -> None:
    """Trains a Unigram model, whose pieces contain its special tokens, as in T5 and XLM-R."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<s>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(["the cat <b>sat</b> on / the mat, and some sunk <p>"] * 50, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("template", "ids"), [("<s> $A", [1]), ("<s> $A </s>", [1, 2]), ("$A </s>", [2]), ("$A", [2])])
def test_the_template_of_the_file_decides(template: str, ids: list[int], shared: Path, tmp_path: Path) -> None:
    """As in transformers, which does not read add_bos_token of the config beside a tokenizer.json."""
    from tokenizers import Tokenizer, processors
    from transformers import AutoTokenizer

    source = shared / "data/models/stories260K"
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    specials = [("<s>", 1), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, pair=None, special_tokens=specials)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((source / "tokenizer_config.json").read_text()) | {"add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_pretrained(str(tmp_path))
    assert ours.separator.ids == ids
    if ids[0] != ours.eos:
        theirs = AutoTokenizer.from_pretrained(tmp_path)("a fox").input_ids
        assert theirs == [ids[0], *ours.encode("a fox"), *ids[1:]]


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
