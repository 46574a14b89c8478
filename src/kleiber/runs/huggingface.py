"""`kleiber export` and `kleiber import`: a run as a Hugging Face folder, and such a folder as the start of a run.

What is written loads with `AutoModelForCausalLM` and `AutoTokenizer` and needs nothing of ours; multipliers are folded
into the weights. A wrapped model is written as what it was, heads of tasks are left out and named. It refuses what has
no twin there, an existing folder, and weights that are pickles.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from kleiber.config.compose import Composer, resolved
from kleiber.config.stages import ONLY
from kleiber.data import chat
from kleiber.data.tokenizers.byte_level import ALPHABET, BPE, EOS, MASK, Bytes
from kleiber.data.tokenizers.pretrained import CONFIG, FILE, Pretrained
from kleiber.models.counting import count_parameters
from kleiber.models.hf import HFModel
from kleiber.models.hf_config import hf_model_node, hf_tokenizer, hf_vocab_size
from kleiber.models.hf_twin import load_hf, to_hf
from kleiber.records.folder import TOKENIZER
from kleiber.records.summary import versions, write_json
from kleiber.runs.open import TrainedModel, new_model, open_model
from kleiber.training import checkpoint

FORMAT = "kleiber.import/1"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
CONVERSATIONS = ("kleiber.data.Instruct", "kleiber.data.Preference", "kleiber.data.Unpaired")
KINDS = {  # ends of transformers' names of models: which AutoModel loads one, and what for
    "ForCausalLM": ("ForCausalLM", "text-generation"),
    "LMHeadModel": ("ForCausalLM", "text-generation"),
    "ForMaskedLM": ("ForMaskedLM", "fill-mask"),
}


def export(run: str, out: Path) -> None:
    """Writes the final weights of RUN or RUN/STAGE to `out`: config, safetensors, tokenizer, and a card.

    Raises ValueError for a run without finished stages, a model that has no twin, or an `out` that is there.
    """
    new_folder(out)
    opened = open_model(run)
    tokenizer, wrapped = opened.tokenizer, isinstance(opened.model, HFModel)
    bos = tokenizer.bos
    twin = opened.model.inner if wrapped else to_hf(opened.model, bos=bos, eos=tokenizer.eos)
    from transformers.utils import logging

    logging.disable_progress_bar()
    twin.save_pretrained(out)
    save_tokenizer(tokenizer, out, opened.model.context)
    settings = Path(run).expanduser() / TOKENIZER / GENERATION
    if settings.is_file():  # of an imported folder, handed on as it was got
        shutil.copy(settings, out / GENERATION)
    if str((opened.config.get("data") or {}).get("_target_")) in CONVERSATIONS:
        save_template(tokenizer, out)
    (out / "README.md").write_text(card(opened, type(twin).__name__))
    if opened.model.heads:
        print(f"{out} has no heads of tasks: {', '.join(opened.model.heads)} stay in {run}", file=sys.stderr)


def import_hf(folder: Path, out: Path) -> None:
    """Writes a Hugging Face folder as a run of no steps: `init=checkpoint init.path=OUT` starts from it.

    Llama, Qwen3, Mixtral and Qwen3-MoE become our own model. Raises ValueError, and leaves nothing behind, for another
    architecture (model=hf wraps those as they are), weights that do not fit, and an `out` that is there.
    """
    new_folder(out)
    try:
        _write_run(folder, out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _write_run(folder: Path, out: Path) -> None:
    node, tokenizer = hf_model_node(folder), hf_tokenizer(folder)
    home = str((out / TOKENIZER).absolute())
    config, _ = resolved(Composer("train").compose([]))
    config |= {"name": out.name, "model": node, "data": {"_target_": "kleiber.data.Unknown", "tokenizer": home}}
    config["batch"]["tokens"] = node["context"]  # a multiple of it, as the check of a config asks
    (out / TOKENIZER).mkdir(parents=True)
    # config.json tells how many rows the embedding has
    for name in (FILE, CONFIG, "config.json", TEMPLATE, GENERATION):
        if (Path(tokenizer) / name).is_file():
            shutil.copy(Path(tokenizer) / name, out / TOKENIZER / name)
    from kleiber.data.tokenizers.pretrained import load_tokenizer

    known = load_tokenizer(home)
    rows = hf_vocab_size(folder)
    if known.vocab_size != rows:
        raise ValueError(
            f"{folder}: its tokenizer has {known.vocab_size} tokens and its embedding {rows} rows (vocab_size of "
            "config.json): leave the tokens without a row out of tokenizer.json"
        )
    model = new_model(config, rows)
    load_hf(model, folder)
    import yaml

    (out / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    state = {"optimizer": {}, "callbacks": {}}
    saved = checkpoint.save(out / "stages" / ONLY / "checkpoints", 0, model, state, "imported")
    parameters = vars(count_parameters(model))
    stage = {"name": ONLY, "parent": None, "status": "finished", "steps": 0, "tokens": 0, "params": parameters}
    stage |= {"metrics": {}, "checkpoint": str(saved.path.relative_to(out))}
    summary = {"schema": FORMAT, "status": "finished", "name": out.name, "source": str(folder), "stages": [stage]}
    write_json(out / "summary.json", summary)


def new_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already: name a folder that is not, or empty it yourself")


def save_tokenizer(tokenizer: Any, out: Path, context: int) -> None:
    """The tokenizer as files that `AutoTokenizer` reads, with the ids of ours."""
    from transformers import PreTrainedTokenizerFast

    options = {"model_max_length": context, "clean_up_tokenization_spaces": False}
    if isinstance(tokenizer, Bytes):
        specials = {"eos_token": EOS, "mask_token": MASK}
        PreTrainedTokenizerFast(tokenizer_object=byte_level(), **specials, **options).save_pretrained(out)
        return
    if isinstance(tokenizer, BPE):
        specials = {"eos_token": EOS, "mask_token": MASK}
        PreTrainedTokenizerFast(tokenizer_file=str(tokenizer.path), **specials, **options).save_pretrained(out)
        return
    assert isinstance(tokenizer, Pretrained), f"no way to write a {type(tokenizer).__name__}"
    told = tokenizer.folder / CONFIG
    config = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    config.pop("auto_map", None)  # code that came with a tokenizer is not passed on
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": _token(tokenizer, tokenizer.eos)} | config
    for name in (FILE, TEMPLATE):
        if (tokenizer.folder / name).is_file():
            shutil.copy(tokenizer.folder / name, out / name)
    (out / CONFIG).write_text(json.dumps(config | {"model_max_length": context}, indent=1, ensure_ascii=False))


def save_template(tokenizer: Any, out: Path) -> None:
    """The template that conversations were trained in, in place of one that came with the tokenizer; none, which is
    told, where transformers would make other ids of it than training did."""
    from transformers import AutoTokenizer

    config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    config.pop("chat_template", None)  # where older versions wrote it
    (out / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False))
    (out / TEMPLATE).write_text(chat.JINJA)
    theirs = AutoTokenizer.from_pretrained(out, local_files_only=True)
    turns = [chat.Turn("system", "Be brief."), chat.Turn("user", "1 + 1?"), chat.Turn("assistant", "It is 2.")]
    said = [{"role": turn.role, "content": turn.content} for turn in turns]
    (encoded,) = chat.encode_conversations([turns], tokenizer)
    if theirs.apply_chat_template(said, return_dict=False) != encoded.ids.tolist():
        (out / TEMPLATE).unlink()
        print(f"{out} has no chat template: transformers reads the one of training in other ids", file=sys.stderr)


def _token(tokenizer: Pretrained, number: int) -> str | None:
    return tokenizer._tokenizer.id_to_token(number)


def byte_level() -> Any:
    """The tokenizer `Bytes` as one of the `tokenizers` package: a vocabulary of 256 visible characters, no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    made = Tokenizer(models.BPE(vocab=dict(ALPHABET), merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made.add_special_tokens([EOS, MASK])
    assert (made.token_to_id(EOS), made.token_to_id(MASK)) == (Bytes.eos, Bytes.mask)
    return made


def card(opened: TrainedModel, architecture: str) -> str:
    """The README of an exported folder: what it is and where it came from, in numbers of the run's own summary."""
    record, summary = opened.record, opened.summary
    data, params = record.get("data") or {}, record.get("params") or {}
    metrics = {key: value for key, value in (record.get("metrics") or {}).items() if value is not None}
    facts = {
        "run": f"{opened.folder.name}, stage {opened.stage}, step {opened.step:,}",
        "config hash": summary.get("config_hash"),
        "commit": f"{summary.get('commit')}{' with uncommitted changes' if summary.get('dirty') else ''}",
        "objective": record.get("objective"),
        "data": " ".join(str(data[key]) for key in ("name", "config") if data.get(key)),
        "data hash": data.get("hash"),
        "tokenizer hash": data.get("tokenizer_hash"),
        "training tokens": _count(record.get("tokens")),
        "unique tokens": _count(record.get("unique_tokens")),
        "parameters": f"{_count(params.get('total'))}, {_count(params.get('active'))} active",
        "learning rate": record.get("lr"),
        "seed": summary.get("seed"),
    } | dict(metrics)
    facts |= {"heads left out": ", ".join(opened.model.heads)} if opened.model.heads else {}
    auto, use = next((found for end, found in KINDS.items() if architecture.endswith(end)), ("", "feature-extraction"))
    rows = "".join(f"| {name} | {value if value not in (None, '') else 'unknown'} |\n" for name, value in facts.items())
    made = ", ".join(f"{name} {number}" for name, number in versions().items() if name in ("torch", "transformers"))
    return f"""---
library_name: transformers
pipeline_tag: {use}
tags: [kleiber]
---

# {opened.folder.name}

{architecture}, exported from a kleiber run; its multipliers are folded into the weights. The licence of the weights
follows from that of the data, which this folder does not know.

| | |
| --- | --- |
{rows}
```python
from transformers import AutoModel{auto}, AutoTokenizer
model, tokenizer = (kind.from_pretrained("FOLDER") for kind in (AutoModel{auto}, AutoTokenizer))
```

Written with {made}.
"""


def _count(value: Any) -> str | None:
    return None if value is None else f"{value:,}"
