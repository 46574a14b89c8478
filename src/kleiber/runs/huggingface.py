"""`kleiber export` and `kleiber import`: writes a run as a Hugging Face folder, and such a folder as a run.

An exported folder loads with `AutoModelForCausalLM` and `AutoTokenizer` and does not need kleiber. Multipliers of the
parametrization are folded into the weights. A wrapped Hugging Face model is written in its original architecture. Task
heads are left out. Export refuses a model that transformers cannot represent, import refuses weights in pickle files,
and both refuse an output folder that is not empty.

A model card says what the run is, how it was trained and scored, and how it is loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from kleiber.config.compose import Composer, resolve_config
from kleiber.config.errors import Status
from kleiber.config.stages import SINGLE_STAGE, has_pretrained_weights, starts_from_weights
from kleiber.config.targets import argument, class_attribute
from kleiber.data import chat
from kleiber.data.pretrained_tokenizer import GENERATION, TEMPLATE, Pretrained, copy_files, load_pretrained
from kleiber.data.tokenizers import ALPHABET, BPE, CONFIG, EOS, FILE, MASK, Bytes
from kleiber.models.counting import count_parameters
from kleiber.models.hf import HFModel
from kleiber.models.hf_config import PreTrainedModel, hf_model_node, hf_tokenizer, hf_vocab_size
from kleiber.models.hf_twin import load_hf, to_hf
from kleiber.models.transformer import Transformer
from kleiber.records.environment import cpu_name, versions
from kleiber.records.files import copy_file, read_json, write_json, write_text, write_yaml
from kleiber.records.folder import TOKENIZER, config_hash
from kleiber.records.summary import StageRecord, Summary
from kleiber.records.terminal import print_line, printable
from kleiber.runs.open import TrainedModel, new_model, open_model
from kleiber.training import checkpoint
from kleiber.types import Config, Json
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

# Conversations that tell chat templates apart, and those with empty messages and with white space at their ends.
CHATS = [
    [chat.Turn("system", "Be brief."), chat.Turn("user", "1 + 1?"), chat.Turn("assistant", "It is 2.")],
    [
        chat.Turn("user", "Two lines,\nnaïve 東京 🙂?"), chat.Turn("assistant", "- One\n\n- two"),
        chat.Turn("user", "(Thanks)"), chat.Turn("assistant", "<b>Fine</b>"), chat.Turn("user", "More"),
    ],
]  # fmt: skip
UNUSUAL_CHATS = [
    [chat.Turn("user", text), chat.Turn("assistant", text), chat.Turn("user", text)] for text in ("", " a  ", "\na\n\n")
]
AUTO_CLASSES = {  # by the ending of transformers' class names: the AutoModel that loads the class, and its pipeline
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}


@dataclass(frozen=True)
class ModelCard:
    """The README of an exported folder: what the model is, where it comes from, and how to load it.

    architecture  transformers' class name of the exported model
    parameters    number of parameters of the exported model
    name          under which transformers loads the folder
    license       of the weights; None where it is not stated
    chats         a sentence on the chat template; "" for a model that was not trained on conversations
    """

    trained: TrainedModel
    architecture: str
    parameters: int
    name: str
    license: str | None = None
    chats: str = ""

    def text(self) -> str:
        """Returns the card in Markdown, with metadata for the hub."""
        rows = "".join(f"| {card_cell(name)} | {card_cell(value)} |\n" for name, value in self.facts().items())
        auto_class, pipeline = "AutoModel", "feature-extraction"
        for ending, names in AUTO_CLASSES.items():
            if self.architecture.endswith(ending):
                auto_class, pipeline = names
        libraries = [f"{name} {number}" for name, number in versions().items() if name in ("torch", "transformers")]
        metadata = "" if self.license is None else f"license: {self.license}\n"
        license_text = (
            "The license of the weights is not stated: it depends on the licenses of the training data and of the "
            "weights that the run started from. `kleiber export --license NAME` states it."
            if self.license is None
            else f"The license of the weights is {self.license}."
        )
        return f"""---
{metadata}library_name: transformers
pipeline_tag: {pipeline}
tags: [kleiber]
---

# {card_cell(self.trained.folder.name)}

{self.architecture}, exported from a kleiber run; the multipliers of its parametrization are folded into the weights.
{f"{self.chats} " if self.chats else ""}{license_text}

| | |
| --- | --- |
{rows}
```python
from transformers import {auto_class}, AutoTokenizer
model, tokenizer = (kind.from_pretrained({json.dumps(self.name)}) for kind in ({auto_class}, AutoTokenizer))
```

Written with {", ".join(libraries)}.
"""

    def facts(self) -> Json:
        """Returns the table of the card: facts from the run's summary by name, with the metrics of the stage."""
        trained = self.trained
        record, summary = trained.record, trained.summary
        data, counts = record.get("data") or {}, count_parameters(trained.model)
        start = start_name(trained.config) or (Path(str(summary["source"])).name if "source" in summary else None)
        facts: Json = {
            "run": f"{trained.folder.name}, stage {trained.stage}, step {trained.step:,}",
            "config hash": summary.get("config_hash"),
            "commit": f"{summary.get('commit')}{' with uncommitted changes' if summary.get('dirty') else ''}",
            "objective": record.get("objective"),
            **({} if start is None else {"started from": start}),
            "data": " ".join(str(data[key]) for key in ("name", "config") if data.get(key)),
            "data hash": data.get("hash"),
            "tokenizer hash": data.get("tokenizer_hash"),
            "training tokens": _format_count(record.get("tokens")),
            "unique tokens": _format_count(record.get("unique_tokens")),
            "parameters": f"{self.parameters:,}, {self.parameters - counts.total + counts.active:,} active",
            "learning rate": record.get("lr"),
            "seed": summary.get("seed"),
        }
        facts |= {name: value for name, value in (record.get("metrics") or {}).items() if value is not None}
        if trained.model.heads:
            facts["task heads, not exported"] = ", ".join(trained.model.heads)
        return facts


def start_name(config: Config) -> str | None:
    """Returns the name of what a run started from, such as RUN/STAGE or a Hugging Face folder; None for nothing."""
    init, model = config.get("init") or {}, config.get("model") or {}
    if init.get("path"):
        path = Path(str(init["path"]))
        return path.name if str(init["_target_"]).endswith(".HF") else f"{path.parent.name}/{path.name}"
    return Path(str(model["path"])).name if model and has_pretrained_weights(model) else None


def card_cell(value: object) -> str:
    """Returns a recorded value as text of a card: a name could otherwise end the table, or add links or HTML."""
    text = "unknown" if value in (None, "") else " ".join(printable(str(value)).split())
    return re.sub(r"[\\`*\[\]|]", r"\\\g<0>", escape(text, quote=False))


def _format_count(value: int | None) -> str | None:
    return None if value is None else f"{value:,}"


def export(run: str, out: Path, license: str | None = None, name: str | None = None) -> None:
    """Writes the final weights of RUN or RUN/STAGE to the folder `out`: config, safetensors, tokenizer, model card.

    license  of the weights, as the model card states it, such as apache-2.0; None states none
    name     under which transformers loads the folder; None: `out`

    Raises ValueError for a run without finished stages, a model that transformers cannot represent, or a folder `out`
    that is not empty.
    """
    check_empty(out)
    trained = open_model(run)
    model, tokenizer = trained.model, trained.tokenizer
    if isinstance(model, HFModel):
        hf_model = model.inner
        if trained.config and argument(trained.config["model"], "weights") == "random":
            set_special_tokens(hf_model, tokenizer)
    elif isinstance(model, Transformer):
        hf_model = to_hf(model, bos=tokenizer.bos, eos=tokenizer.eos)
    else:
        raise ValueError(f"{run} has a {type(model).__name__}: only model=gpt, bert, moe and hf can be exported")
    from transformers.utils import logging

    logging.disable_progress_bar()
    hf_model.save_pretrained(out)
    for path in out.glob("*.safetensors"):
        shutil.copymode(out / "config.json", path)  # safetensors ignores the umask
    save_tokenizer(tokenizer, out, model.context)
    home = trained.folder / TOKENIZER
    if isinstance(tokenizer, Pretrained) and starts_from_weights(trained.config):
        home = tokenizer.folder
    if (home / GENERATION).is_file():  # of an imported folder
        write_json(out / GENERATION, read_json(home / GENERATION))
    data = str((trained.config.get("data") or {}).get("_target_") or "")
    is_chat = bool(data) and bool(class_attribute(data, "conversational"))
    chats = save_chat_template(tokenizer, out) if is_chat else ""
    card = ModelCard(trained, type(hf_model).__name__, hf_model.num_parameters(), name or str(out), license, chats)
    write_text(out / "README.md", card.text())
    if model.heads:
        print_line(f"warning: {out} does not contain the task heads of {run}: {', '.join(model.heads)}", err=True)


def set_special_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Sets the ids of the tokens at the beginning and the end of text, which a model with random weights lacks."""
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos}
    model.config.update(ids)
    if model.can_generate():
        model.generation_config.update(**ids)


def import_hf(folder: Path, out: Path, allow_nonfinite: bool = False) -> None:
    """Writes a Hugging Face folder as a finished run of zero steps, from which `init=checkpoint init.path=OUT` starts.

    Llama, Qwen3, Mixtral and Qwen3-MoE become the native model; model=hf wraps every other architecture instead.
    Raises ValueError for other architectures, weights that do not fit, or a folder `out` that is not empty; it then
    writes nothing.

    allow_nonfinite  whether weights may be NaN or infinite
    """
    check_empty(out)
    try:
        _write_run(folder, out, allow_nonfinite)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _write_run(folder: Path, out: Path, allow_nonfinite: bool) -> None:
    node, tokenizer = hf_model_node(folder), hf_tokenizer(folder)
    vocab_size, rows = load_pretrained(tokenizer).vocab_size, hf_vocab_size(folder)
    if vocab_size != rows:
        raise ValueError(
            f"{folder}: the tokenizer has {vocab_size} tokens, but the embedding has {rows} rows (vocab_size in "
            "config.json): remove the tokens without a row from tokenizer.json"
        )
    home = str((out / TOKENIZER).absolute())
    config, _ = resolve_config(Composer("train").compose([]))
    config |= {"name": out.name, "model": node, "data": {"_target_": "kleiber.data.Unknown", "tokenizer": home}}
    config["batch"]["tokens"] = node["context"]  # the check of a config requires a multiple of the context
    copy_files(Path(tokenizer), out / TOKENIZER)
    model = new_model(config, rows)
    assert isinstance(model, Transformer)
    load_hf(model, folder, allow_nonfinite)
    write_yaml(out / "config.yaml", config)
    state = {"optimizer": {}, "callbacks": {}}
    saved = checkpoint.save(out / "stages" / SINGLE_STAGE / "checkpoints", 0, model, state, "imported")
    place, counts = str(saved.path.relative_to(out)), vars(count_parameters(model))
    record = StageRecord.untrained(SINGLE_STAGE, counts, load_pretrained(home).hash, place)
    machine = {"cpu": cpu_name(), "threads": 1, "device": "cpu", "world_size": 1}
    placeless = {key: value for key, value in config.items() if key != "root"}  # the folder may have any name
    facts = {"run_id": os.urandom(6).hex(), "name": out.name, "study": None, "overrides": [], "seed": config["seed"]}
    summary = Summary(out)
    summary.start(**facts, config_hash=config_hash(placeless)[:8], machine=machine, source=str(folder))
    summary.update(status=Status.FINISHED, stages=[record.to_json()])


def check_empty(out: Path) -> None:
    """Raises ValueError unless `out` does not exist or is an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} must not exist or be empty: choose another folder, or delete its content")


def save_tokenizer(tokenizer: Tokenizer, out: Path, context: int) -> None:
    """Writes a tokenizer as files that `AutoTokenizer` reads. Token ids stay the same.

    context  longest row of the model in tokens
    """
    from transformers import PreTrainedTokenizerFast

    options = {"model_max_length": context, "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, Bytes):
        specials = {"eos_token": EOS, "mask_token": MASK}
        PreTrainedTokenizerFast(tokenizer_object=hf_byte_tokenizer(), **specials, **options).save_pretrained(out)
        return
    if isinstance(tokenizer, BPE):
        specials = {"eos_token": EOS, "mask_token": MASK}
        PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.path), **specials, **options).save_pretrained(out)
        return
    assert isinstance(tokenizer, Pretrained), f"cannot write a {type(tokenizer).__name__}"
    file = tokenizer.folder / CONFIG
    config = read_json(file) if file.is_file() else {}
    config.pop("auto_map", None)  # names code in the source folder, which is not exported
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer._tokenizer.id_to_token(tokenizer.eos),
        **special_tokens(tokenizer),
        **config,
    }
    for name in (FILE, TEMPLATE):
        if (tokenizer.folder / name).is_file():
            copy_file(tokenizer.folder / name, out / name)
    write_text(out / CONFIG, json.dumps(config | {"model_max_length": context}, indent=1, ensure_ascii=False))


def special_tokens(tokenizer: Pretrained) -> dict[str, str]:
    """Special tokens of the tokenizer's folder by name, those that transformers infers from its model type included.

    Without those that have no id in its vocabulary. Empty for a folder that transformers cannot read.
    """
    from transformers import AutoTokenizer

    try:
        source = AutoTokenizer.from_pretrained(tokenizer.folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # of several types, by transformers and tokenizers
        return {}
    specials = {name: str(token) for name, token in source.special_tokens_map.items() if not isinstance(token, list)}
    return {name: token for name, token in specials.items() if tokenizer._tokenizer.token_to_id(token) is not None}


def save_chat_template(tokenizer: Tokenizer, out: Path) -> str:
    """Writes the chat template of training to the folder `out`, in place of one that came with the tokenizer.

    Writes no template, and warns, when transformers would turn every form of it into other token ids than training did.

    Returns a sentence for the model card.
    """
    from transformers import AutoTokenizer

    config = read_json(out / CONFIG)
    config.pop("chat_template", None)  # older versions of transformers stored the template here
    write_text(out / CONFIG, json.dumps(config, indent=1, ensure_ascii=False))
    hf_tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    for gaps in ((False, False), (False, True), (True, True)):
        template = chat.jinja_template(tokenizer, *gaps)
        if all(has_same_ids(hf_tokenizer, template, dialog, tokenizer) for dialog in CHATS):
            write_text(out / TEMPLATE, template)
            is_exact = all(has_same_ids(hf_tokenizer, template, dialog, tokenizer) for dialog in UNUSUAL_CHATS)
            unless = "" if is_exact else ", unless a message is empty, or begins or ends with white space"
            return f"Its chat template gives the token ids of training{unless}."
    print_line(
        f"warning: {out} has no chat template, because transformers turns that of training into other token ids: "
        f"`kleiber chat {out}` encodes conversations as training did",
        err=True,
    )
    return "It has no chat template, because transformers would give other token ids than training: use `kleiber chat`."


def has_same_ids(
    hf_tokenizer: PreTrainedTokenizerBase, template: str, dialog: chat.Conversation, tokenizer: Tokenizer
) -> bool:
    """Whether transformers turns a conversation, and the prompt for its next answer, into the token ids of training."""
    messages = [{"role": turn.role, "content": turn.content} for turn in dialog]
    apply = partial(hf_tokenizer.apply_chat_template, messages, chat_template=template, return_dict=False)
    whole, prompt = apply(), apply(add_generation_prompt=True)
    expected = chat.encode_conversations([dialog], tokenizer)[0].ids.tolist()
    return whole == expected and prompt == chat.encode_prompt(dialog, tokenizer)


def hf_byte_tokenizer() -> tokenizers.Tokenizer:
    """Builds the tokenizer `Bytes` with the package `tokenizers`: 256 visible characters as tokens, and no merges."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=dict(ALPHABET), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([EOS, MASK])
    assert (tokenizer.token_to_id(EOS), tokenizer.token_to_id(MASK)) == (Bytes.eos, Bytes.mask)
    return tokenizer
