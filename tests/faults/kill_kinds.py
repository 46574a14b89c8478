"""The kinds of run that `kill_campaign` kills, where they are killed, and what is compared afterwards.

A kind whose work is done in a fork can be killed at the call of a function; that of ranks, sweeps and studies is done
in processes of their own, which are killed at a time or at a checkpoint.
"""

import gzip
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from small_run import REPOSITORY

DATA = REPOSITORY / "tests" / "data"
OFTEN = ["budget.steps=20", "trainer.max_steps=20", "callbacks.log.every=1", "callbacks.checkpoints.every=4"]
OFTEN += ["eval.every_steps=7", "eval.tokens=1024", "model.width=32", "model.depth=1", "model.context=32"]
SHAPE = "{hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64}"
START = ["init=checkpoint", "init.path={base}"]
CHAIN = ["stages=chain", "stages.chain={one:{},two:{data:{path:{more}},budget:{steps:12}}}"]

# Functions at whose call a run kills itself.
CHECKPOINT = [
    f"kleiber.training.checkpoint.{name}" for name in ("save_model", "file_sha256", "_sync", "_commit", "tidy")
]
VALIDATION = ["kleiber.evals.task_scores.held_out_loss"]
LATE = [f"kleiber.training.callbacks.{name}" for name in ("samples.generate", "classes.evaluation_batches")]
LATE += [f"kleiber.runs.stage.{name}" for name in ("end_retention", "stage_drift", "complete_record")]
LATE += ["kleiber.records.summary.write_json", "kleiber.runs.stage.remove_branch_checkpoints"]
START_OF_STAGE = [f"kleiber.training.loggers.{name}" for name in ("replaced", "read_lines")]
START_OF_STAGE += ["kleiber.runs.stage.load_weights"]
PLANNING = ["kleiber.records.folder.write_yaml", "kleiber.runs.plan.build_model", "kleiber.runs.inputs.run_inputs"]
PREPARING = ["kleiber.data.token_writer.write_tokens", "kleiber.data.cache._build", "kleiber.data.cache._checksums"]
PREPARING += [f"kleiber.data.token_writer.{name}" for name in ("write_json", "fast_hash")]
COPYING = ["kleiber.training.remote.Remote.copy", "kleiber.training.remote.Remote.remove"]
COPYING += ["kleiber.training.remote.Remote._fetch"]
AIMS = {
    "checkpoint": CHECKPOINT,
    "anywhere": [],  # at a random time after the first stage has begun
    "validation": VALIDATION,
    "late": LATE,
    "start": START_OF_STAGE,
    "early": PLANNING,
    "preparation": PREPARING,
    "copy": COPYING,
}
RUN = ("checkpoint", "anywhere", "early", "validation", "late", "start")
PROCESSES = ("anywhere", "early", "late")


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    overrides     of its command, besides those of a small run; {base} is a trained run, {more} another text, {text} a
                  larger one, {root} the folder of this run
    aims          where it is killed, in turn
    without       beginnings of overrides of a small run that it does not have
    in_processes  whether other processes than the first one train
    entry         whether the command is started as `python train.py`, and so is killed while it imports too
    constants     values of constants of modules
    own_cache     whether each run prepares its data itself
    loses_disk    whether the checkpoints on the disk are removed after every other kill
    """

    overrides: list[str] = field(default_factory=list)
    aims: tuple[str, ...] = RUN
    without: tuple[str, ...] = ()
    in_processes: bool = False
    entry: bool = False
    constants: dict[str, int] = field(default_factory=dict)
    own_cache: bool = False
    loses_disk: bool = False


def ranks(trainer: str, *overrides: str) -> Kind:
    """Two ranks."""
    return Kind([f"trainer={trainer}", "trainer.devices=2", *overrides], PROCESSES, in_processes=True)


SMALL_BLOCKS = {"kleiber.data.blocks.BLOCK_BYTES": 4000, "kleiber.data.sources.BATCH_CHARACTERS": 4000}
KINDS = {
    "dense": Kind(),
    "moe": Kind(["model=moe"]),
    "lstm": Kind(["model=lstm"], without=("model.context", "model.depth")),
    "dropout": Kind(["model.dropout=0.2"]),
    "mlm": Kind(["model=bert", "objective=mlm"]),
    "muon": Kind(["optimizer=muon"]),
    "sft": Kind(["data=instruct", f"data.path={DATA / 'instruct.jsonl'}", "objective=sft", "model.context=64"]),
    "dpo": Kind(["data=preference", f"data.path={DATA / 'preference.jsonl'}", "objective=dpo"]),
    "kto": Kind(["data=unpaired", f"data.path={DATA / 'unpaired.jsonl'}", "objective=kto", "model.context=64"]),
    "reward": Kind(["data=preference", f"data.path={DATA / 'preference.jsonl'}", "objective=reward"]),
    "classify": Kind(["data=labelled", f"data.path={DATA / 'labelled.jsonl'}", "objective=classify"]),
    "grpo": Kind(
        [
            "data=verifiable/sorting",
            "data.problems=40",
            "data.held_out=8",
            "data.lengths=[2]",
            "objective=grpo",
            "objective.group=4",
            "objective.reward={length: 1}",
            "model.context=32",
        ],
        without=("data.path", "data.max_bytes"),
    ),
    "lora": Kind([*START, "adapter=lora", "adapter.rank=2"]),
    "ema": Kind(["callbacks=ema", "callbacks.ema.decay=0.9"]),
    "ewc chain": Kind([*CHAIN, "retention=ewc"]),
    "replay chain": Kind([*CHAIN, "retention=replay"]),
    "trunk": Kind(["stages=trunk_and_cooldowns", "stages.branches=[2560,5120,10240]"], without=("budget.",)),
    "distill": Kind(["objective=distill", "objective.teacher={base}"]),
    "hf": Kind(
        ["model=hf", "model.path=llama", "model.weights=random", f"model.config={SHAPE}", "model.context=32"],
        without=("model.width", "model.depth"),
    ),
    "evaluations": Kind(["evals=[perplexity]", "evals.perplexity.positions=true", "eval.every_tokens=2560"]),
    "streaming": Kind(
        [
            "data.path={text}",
            "data.splits=files",
            "data.streaming=true",
            "data.shuffle_buffer=2000",
            "data.max_bytes=null",
        ],
        constants=SMALL_BLOCKS,
    ),
    "preparation": Kind(
        ["data.path={text}", "data.tokenizer=bpe", "data.vocab_size=300"],
        ("preparation", "early", "preparation", "checkpoint"),
        constants=SMALL_BLOCKS,
        own_cache=True,
    ),
    "remote": Kind(
        ["callbacks.checkpoints.remote=file://{root}-copies"],
        ("copy", "anywhere", "copy", "checkpoint", "late", "copy"),
        loses_disk=True,
    ),
    "command": Kind([], ("early", "anywhere"), entry=True),
    "ddp": ranks("ddp"),
    "fsdp": ranks("fsdp"),
    "fsdp shards": ranks("fsdp", "callbacks.checkpoints.sharded=true"),
    "expert": ranks("expert", "model=moe", "model.mlp.num_experts=4"),
    "sweep": Kind(["-m", "name=s", "seed=1,2", "launcher.workers=2"], PROCESSES, in_processes=True),
    "study": Kind(
        ["study=compare", "design.arms={plain:{},dropout:{model.dropout:0.2}}", "design.lrs=[0.01]", "design.seeds=2"],
        PROCESSES,
        in_processes=True,
        without=("callbacks.samples",),
    ),
}
TIMES = ("speed/",)
TIMED = ("started", "seconds", "device_seconds", "evaluation_seconds", "tokens_per_s", "mfu", "peak_memory_bytes",
         "speed", "train_s", "watt_hours")  # fmt: skip
TIMED_TABLES = ("Speed and memory", "What all arms share")  # of findings
NOT_COMPARED = (*TIMED, "cost", "run_id", "overrides", "commit", "dirty")


def facts(root: Path) -> dict[str, Any]:
    """What the runs of a root left on disk by the name of the file, without times: of each run, and of the study."""
    results: dict[str, Any] = {}
    for config in sorted(root.glob("*/*/config.yaml")):
        folder = config.parent
        results |= {f"{folder.name}/{name}": value for name, value in facts_of_run(folder).items()}
    for path in sorted(root.glob("*/findings.json")):
        findings = without_times(json.loads(path.read_text()))
        for title, rows in findings.pop("tables").items():
            if title not in TIMED_TABLES:
                results[f"{path.name} {title}"] = [row for row in rows if row.get("equal") != "training time"]
        findings["caveats"] = [caveat for caveat in findings["caveats"] if caveat["code"] != "speed"]
        results[path.name] = findings
    for path in sorted(root.glob("*/runs.jsonl.gz")):
        rows = {}
        for line in gzip.decompress(path.read_bytes()).splitlines():
            row = without_times(json.loads(line))
            rows[row["run"]] = {key: row["summary"][key] for key in ("status", "stages")}
        results[path.name] = rows
    for copies in sorted(root.parent.glob(f"{root.name}-copies")):
        results["copies"] = {
            str(path.relative_to(copies)): tensors_digest(path) for path in copies.rglob("*.safetensors")
        }
    for cache in sorted(root.parent.glob(f"{root.name}-cache")):
        results["cache"] = {str(path.relative_to(cache)): digest(path) for path in cache.rglob("*.bin")}
    return results


def facts_of_run(folder: Path) -> dict[str, Any]:
    """What a run left on disk by the name of the file: digests of weights, rows, texts, the summary."""
    results: dict[str, Any] = {}
    for stage in sorted(folder.glob("stages/*")):
        for points in (path for path in stage.iterdir() if path.is_dir()):
            newest = max(points.glob("step-????????"), default=None)
            files = [] if newest is None else sorted(newest.rglob("*.safetensors"))
            sums = {str(file.relative_to(points)): tensors_digest(file) for file in files}
            results[f"weights {stage.name}/{points.name}"] = sums
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]
    results["metrics.jsonl"] = [row for row in rows if row.keys() - {"stage", "step"}]
    lines = (folder / "metrics.csv").read_text().splitlines()
    results["metrics.csv"] = [line for line in lines if not any(name in line for name in TIMES)]
    for path in sorted([*folder.glob("samples.txt"), *folder.glob("classes/*.json")]):
        results[str(path.relative_to(folder))] = path.read_text()
    results["summary.json"] = without_times(json.loads((folder / "summary.json").read_text()))
    return results


def tensors_digest(path: Path) -> str:
    """The sha256 of the tensors in a file, without its metadata, whose keys are in a random order."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header.pop("__metadata__", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + content[end:]).hexdigest()


def digest(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def without_times(value: Any) -> Any:
    """A value of a JSON file without what differs from run to run."""
    if isinstance(value, dict):
        names = [name for name in value if name not in NOT_COMPARED]
        return {name: without_times(value[name]) for name in names if not name.startswith(TIMES)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value
