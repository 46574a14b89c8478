"""An exported run has the same ids and logits in transformers, and runs can start from an imported folder."""

import json
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from exported_model import loaded

from kleiber.config.compose import config_files
from kleiber.config.targets import class_attribute
from kleiber.data.chat import Turn, encode_conversations, encode_prompt
from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.data.tokenizers import Bytes
from kleiber.launch.cli import main
from kleiber.models.hf import HFModel
from kleiber.records.folder import read_config
from kleiber.runs import huggingface
from kleiber.runs.huggingface import export, import_hf, save_chat_template, save_tokenizer
from kleiber.runs.open import TrainedModel, open_model
from kleiber.types.batch import Batch

INSTRUCT = Path(__file__).parents[1] / "data" / "instruct.jsonl"
TEXT = "The keeper weighed 1,234 mice: naïve, 東京 🙂\n\tand  more"


@torch.no_grad()
def same_logits(run: Path, folder: Path, text: str = TEXT) -> None:
    """Asserts that a run and its exported folder have the same token ids and logits."""
    trained, (twin, tokenizer) = open_model(str(run)), loaded(folder)
    ids = trained.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    rows = torch.tensor([ids[:48]])
    logits = trained.model.head(trained.model(Batch(rows)).hidden)
    torch.testing.assert_close(twin(rows).logits, logits, atol=1e-5, rtol=1e-5)
    assert float(logits.std()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["model=gpt", "data.tokenizer=bytes"],
        pytest.param(["model=moe", "data.tokenizer=bpe", "data.vocab_size=300"], marks=pytest.mark.slow),
    ],
    ids=["dense bytes", "moe bpe"],
)
def test_an_exported_run_gives_its_ids_and_logits_in_transformers(launch, tmp_path, options, capsys):
    run, out = launch(*options, "trainer.max_steps=4"), tmp_path / "out"
    assert main(["export", str(run), str(out)]) == 0
    same_logits(run, out)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
    assert not any(name.endswith((".bin", ".py")) for name in names)
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    summary = json.loads((run / "summary.json").read_text())
    card = (out / "README.md").read_text()
    stage = summary["stages"][0]
    for fact in (summary["config_hash"], summary["commit"], stage["data"]["hash"], f"{stage['tokens']:,}"):
        assert str(fact) in card
    assert f"| val/{stage['data']['name']}/loss | {next(iter(stage['metrics'].values()))} |" in card
    _, tokenizer = loaded(out)
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT and tokenizer.eos_token == "<|endoftext|>"
    assert main(["export", str(run), str(out)]) == 2 and str(out) in capsys.readouterr().err


def test_an_exported_byte_tokenizer_has_the_same_ids(tmp_path):
    from transformers import AutoTokenizer

    save_tokenizer(Bytes(), tmp_path, 64)
    tokenizer, ours = AutoTokenizer.from_pretrained(tmp_path), Bytes()
    every = "".join(chr(i) for i in range(1, 0x250)) + TEXT
    assert tokenizer(every, add_special_tokens=False)["input_ids"] == ours.encode(every)
    assert tokenizer.decode(ours.encode(every)) == every
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id) == (256, 257)
    again = load_pretrained(str(tmp_path))
    assert again.encode(every) == ours.encode(every) and again.token_bytes.tolist() == ours.token_bytes.tolist()


@pytest.mark.slow
def test_stories260k_imported_starts_a_run_and_is_exported_again(shared, launch, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    source, out, back = shared / "data" / "models" / "stories260K", tmp_path / "run", tmp_path / "back"
    assert main(["import", str(source), str(out)]) == 0
    assert "it/s]" not in capsys.readouterr().err  # kleiber's progress line is the only one
    opened = open_model(str(out))
    assert opened.tokenizer.vocab_size == opened.model.vocab_size == 512 and opened.step == 0
    export(str(out), back)
    ids = torch.tensor([opened.tokenizer.encode("Once upon a time, there was a little girl")])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(source)(ids).logits
        torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(back)(ids).logits, wanted)
    run = launch("init=checkpoint", f"init.path={out}", "model.context=64", "trainer.max_steps=2", "optimizer.lr=1e-9")
    start = open_model(str(run))
    assert start.tokenizer.vocab_size == 512 and start.model.context == 64
    with torch.no_grad():
        after = start.model.head(start.model(Batch(ids)).hidden)
    torch.testing.assert_close(after, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_chat_template_and_generation_settings_are_imported_and_exported(shared, launch, tmp_path):
    source, out, back = tmp_path / "source", tmp_path / "run", tmp_path / "back"
    shutil.copytree(shared / "data" / "models" / "stories260K", source)
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    settings = {"bos_token_id": 1, "eos_token_id": [2, 5], "do_sample": True, "top_k": 7}
    (source / "generation_config.json").write_text(json.dumps(settings))
    assert main(["import", str(source), str(out)]) == main(["export", str(out), str(back)]) == 0
    twin, tokenizer = loaded(back)
    generation = twin.generation_config
    assert twin.config.bos_token_id == 1
    assert (generation.eos_token_id, generation.do_sample, generation.top_k) == ([2, 5], True, 7)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    tuned = launch("init=checkpoint", f"init.path={out}", "model.context=64", "trainer.max_steps=2")
    for name, run in (("stage", f"{out}/main"), ("tuned", str(tuned))):
        export(run, tmp_path / name)
        assert json.loads((tmp_path / name / "generation_config.json").read_text()) == settings


@pytest.mark.slow
def test_conversations_are_exported_with_the_template_they_were_trained_in(launch, tmp_path):
    run, out = launch("objective=sft", "data=instruct", f"data.path={INSTRUCT}", "budget.steps=1"), tmp_path / "out"
    assert main(["export", str(run), str(out)]) == 0
    _, tokenizer = loaded(out)
    turns = [Turn("user", "1 + 1?"), Turn("assistant", "2"), Turn("user", "And 2 more?")]
    rows = [{"role": turn.role, "content": turn.content} for turn in turns]
    whole = tokenizer.apply_chat_template(rows, return_dict=False)
    assert whole == encode_conversations([turns], Bytes())[0].ids.tolist()
    prompt = tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(turns, Bytes())


def test_all_data_in_the_chat_template_is_exported_with_it():
    files = [file for place, file in config_files().items() if re.fullmatch(r"data/[a-z]\w*", place)]
    wrong = []
    for target in {yaml.safe_load(file.read_text())["_target_"] for file in files}:
        package, _, name = target.rpartition(".")
        module = getattr(import_module(package), name).__module__
        if ("TEMPLATE" in vars(import_module(module))) != bool(class_attribute(target, "conversational")):
            wrong.append(target)
    assert wrong == []


def test_a_wrapped_model_with_random_weights_is_exported_with_the_end_of_text_of_its_tokenizer(tmp_path, monkeypatch):
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    node = {"path": "llama", "weights": "random", "config": sizes | {"num_key_value_heads": 2}}
    run = TrainedModel(
        Path("run"), HFModel(258, **node), Bytes(), {"model": {"_target_": "kleiber.models.HFModel", **node}}
    )
    monkeypatch.setattr(huggingface, "open_model", lambda _: run)
    export("run", tmp_path / "out")
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / file).read_text())["eos_token_id"] == Bytes.eos


@pytest.mark.parametrize("config", [{"do_lower_case": True}, {"tokenizer_class": "PreTrainedTokenizerFast"}])
def test_special_tokens_that_the_source_only_implies_are_exported(config, tmp_path):
    """BERT's folders name no class, which follows from their model type; older ones have a file of special tokens."""
    import tokenizers
    from transformers import AutoTokenizer

    from kleiber.data.pretrained_tokenizer import load_pretrained

    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    vocabulary = {token: i for i, token in enumerate([*names.values(), *"abc"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.add_special_tokens(list(names.values()))
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    words.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    if "tokenizer_class" in config:
        (source / "special_tokens_map.json").write_text(json.dumps(names))
    else:
        (source / "config.json").write_text(json.dumps({"model_type": "bert"}))
    save_tokenizer(load_pretrained(str(source)), out, 64)
    exported = AutoTokenizer.from_pretrained(out)
    assert {name: exported.special_tokens_map[name] for name in names} == names
    assert exported.convert_tokens_to_ids(exported.mask_token) == 4 and len(exported) == len(vocabulary)


DIALOG = [
    Turn("system", "Be  brief"), Turn("user", " 1 + 1? "), Turn("assistant", "It is\n\n2. naïve 東京 🙂"),
    Turn("user", "\tAnd 2 more?\n"), Turn("assistant", "4"), Turn("user", "So?"),
]  # fmt: skip


def chat_source(shared: Path, folder: Path, **normalizer: object) -> Path:
    """A copy of stories260K, whose tokenizer begins every text with a space, with changes to its normalizer."""
    shutil.copytree(shared / "data" / "models" / "stories260K", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "theirs"}))
    file = json.loads((folder / "tokenizer.json").read_text())
    file["normalizer"]["normalizers"][0] |= normalizer
    (folder / "tokenizer.json").write_text(json.dumps(file))
    return folder


def save_chats(source: Path, out: Path):
    """Saves tokenizer and chat template to `out`; returns the tokenizer, that of transformers, and the sentence."""
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(str(source))
    out.mkdir()
    save_tokenizer(tokenizer, out, 64)
    sentence = save_chat_template(tokenizer, out)
    return tokenizer, AutoTokenizer.from_pretrained(out), sentence


def test_a_tokenizer_that_begins_texts_with_a_space_has_a_chat_template_with_the_ids_of_training(shared, tmp_path):
    """SentencePiece adds a space before each text that training encodes, and transformers encodes one text."""
    tokenizer, theirs, sentence = save_chats(chat_source(shared, tmp_path / "source"), tmp_path / "out")
    rows = [{"role": turn.role, "content": turn.content} for turn in DIALOG]
    assert (
        theirs.apply_chat_template(rows, return_dict=False) == encode_conversations([DIALOG], tokenizer)[0].ids.tolist()
    )
    prompt = theirs.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(DIALOG, tokenizer)
    assert "unless" not in sentence
    assert "theirs" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_a_chat_template_with_other_ids_than_in_training_is_not_exported(shared, tmp_path, capsys):
    out = tmp_path / "out"
    _, _, sentence = save_chats(chat_source(shared, tmp_path / "source", prepend="a▁"), out)
    assert f"kleiber chat {out}" in capsys.readouterr().err and "kleiber chat" in sentence
    assert not (out / "chat_template.jinja").exists() and "theirs" not in (out / "tokenizer_config.json").read_text()


def test_a_folder_that_cannot_be_imported_leaves_no_run(shared, tmp_path):
    source = shared / "data" / "models" / "stories260K"
    trained = open_model(str(source))
    assert type(trained.model).__name__ == "HFModel" and trained.model.context == 512 and trained.config == {}
    with pytest.raises(ValueError, match="nowhere"):
        open_model(str(tmp_path / "nowhere"))
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type=gpt2"):
        import_hf(tmp_path / "gpt2", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.copytree(source, tmp_path / "copy")
    config = json.loads((source / "tokenizer.json").read_text())
    config["added_tokens"].append(config["added_tokens"][0] | {"id": 512, "content": "[PAD]"})
    (tmp_path / "copy" / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"copy.*513.*512"):
        import_hf(tmp_path / "copy", tmp_path / "out")
    shutil.copy(source / "tokenizer.json", tmp_path / "copy" / "tokenizer.json")
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="copy"):
        import_hf(tmp_path / "copy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_weights_that_are_not_finite_are_imported_only_if_asked(shared, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(shared / "data" / "models" / "stories260K", source)
    state = load_file(source / "model.safetensors")
    state["model.norm.weight"][3] = float("nan")
    save_file(state, source / "model.safetensors", {"format": "pt"})
    assert main(["import", str(source), str(out)]) == 2
    assert "model.safetensors: the weight model.norm.weight " in capsys.readouterr().err and not out.exists()
    assert main(["import", str(source), str(out), "--allow-nonfinite"]) == 0
    assert not open_model(str(out)).model.get_parameter("norm.weight").isfinite().all()


@pytest.mark.slow
def test_a_wrapped_model_is_exported_in_its_original_architecture(shared, launch, tmp_path):
    source = shared / "data" / "models" / "stories260K"
    run = launch("model=hf", f"model.path={source}", "model.depth=5", "trainer.max_steps=2", "optimizer.lr=1e-9")
    config = read_config(run)
    assert config["data"]["tokenizer"] == str(source)
    record = json.loads((run / "summary.json").read_text())
    (stage,) = record["stages"]
    assert stage["start_metrics"]["val/tiny/loss"] == pytest.approx(stage["metrics"]["val/tiny/loss"], rel=1e-4)
    assert record["R"]["baseline"] == [stage["start_metrics"]["val/tiny/loss"]], "scored before its first step"
    assert 0 < stage["metrics"]["drift/weights"] < 1e-4
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    same_logits(run, tmp_path / "out", "Once upon a time, there was a little girl")
    (twin, _), ids = loaded(tmp_path / "out"), torch.tensor([[1, 403, 407]])
    with torch.no_grad():
        torch.testing.assert_close(twin(ids).logits, loaded(source)[0](ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_a_model_that_transformers_cannot_represent_is_refused_by_name(launch, tmp_path, capsys):
    run = launch("model/attention=window", "trainer.max_steps=2")
    assert main(["export", str(run), str(tmp_path / "out")]) == 2
    assert "window" in capsys.readouterr().err.lower() and not (tmp_path / "out").exists()
