"""Random SIGKILLs over many kinds of runs; after each run the question whether it equals the unbroken one.

Compared are weights, metrics.jsonl, metrics.csv, samples.txt, classes/ and summary.json, all without times. A third of
the kills falls inside the writing of a checkpoint, a sixth each into validation, into what comes after the last
checkpoint, and into the start of a stage (where files are rewritten), the rest at a random time. A kill counts only if
a checkpoint existed and the run was unfinished. Each run is a fork of this process, which has imported everything and
computes nothing; a run of two ranks is killed as a whole or in one rank, near a checkpoint.

    python tests/faults/kill30.py --kills 200 [--kinds dense moe ...] [--seed 0] [--out FILE.json]
"""

import argparse
import importlib
import json
import mmap
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import alive, rank_of
from small_run import REPOSITORY, TINY

DATA = REPOSITORY / "tests" / "data"
OFTEN = ["budget.steps=20", "trainer.max_steps=20", "callbacks.log.every=1", "callbacks.checkpoints.every=4"]
OFTEN += ["eval.every_steps=7", "eval.tokens=1024", "model.width=32", "model.depth=1", "model.context=32"]
SHAPE = "{hidden_size: 32, num_attention_heads: 2, num_key_value_heads: 2, intermediate_size: 64}"
START = ["init=checkpoint", "init.path={base}"]
CHAIN = ["stages=chain", "stages.chain={one:{},two:{data:{path:{more}},budget:{steps:12}}}"]
KINDS = {
    "dense": [],
    "moe": ["model=moe"],
    "dropout": ["model.dropout=0.2"],
    "mlm": ["model=bert", "objective=mlm"],
    "muon": ["optimizer=muon"],
    "sft": ["data=instruct", f"data.path={DATA / 'instruct.jsonl'}", "objective=sft", "model.context=64"],
    "dpo": ["data=preference", f"data.path={DATA / 'preference.jsonl'}", "objective=dpo"],
    "classify": ["data=labelled", f"data.path={DATA / 'labelled.jsonl'}", "objective=classify"],
    "lora": [*START, "adapter=lora", "adapter.rank=2"],
    "ema": ["callbacks=ema", "callbacks.ema.decay=0.9"],
    "ewc chain": [*CHAIN, "retention=ewc"],
    "replay chain": [*CHAIN, "retention=replay"],
    "trunk": ["stages=trunk_and_cooldowns", "stages.branches=[2560,5120,10240]"],
    "distill": ["objective=distill", "objective.teacher={base}"],
    "hf": ["model=hf", "model.path=llama", "model.weights=random", f"model.config={SHAPE}", "model.context=32"],
    "latency": ["model=moe", "callbacks=latency", "callbacks.latency.batches=[1]", "callbacks.latency.repeats=1"],
    "positions": ["callbacks=positions", "callbacks.positions.tokens=1024"],
    "ddp": ["trainer=ddp", "trainer.devices=2"],
}
EXCLUDED = {"hf": ("model.width", "model.depth"), "trunk": ("budget.",)}  # of OFTEN
WRITING = [f"kleiber.training.checkpoint.{name}" for name in ("save_model", "file_sha256", "_sync", "_commit", "tidy")]
LATE = [
    "kleiber.training.callbacks.after_training.generate",
    "kleiber.training.callbacks.after_training.evaluation_batches",
]
LATE += [f"kleiber.runs.stage.{name}" for name in ("end_retention", "stage_drift", "complete_record")]
STARTING = [
    "kleiber.training.loggers.replaced",
    "kleiber.training.loggers.read_lines",
    "kleiber.runs.stage.load_weights",
]
AIMS = {
    "checkpoint": WRITING,
    "validation": ["kleiber.evals.perplexity.held_out_loss"],
    "late": LATE,
    "start": STARTING,
}
TIMES = ("speed/", "latency/")
TIMED = ("started", "seconds", "device_seconds", "evaluation_seconds", "tokens_per_s", "mfu", "peak_memory_bytes")


class Child:
    """One start of a run in a fork.

    `seconds` are those from the start of its first stage to its end; a kill at a random time falls between the two.
    """

    def __init__(self, command: list[str], root: Path, aim: str, rng: random.Random, typical_s: float) -> None:
        self.shared, self.root, self.rng = mmap.mmap(-1, 1), root, rng
        self.ranks = any(text.startswith("trainer=ddp") for text in command)
        self.after_s = rng.uniform(0, typical_s) if aim == "anywhere" else None
        target, number = (
            rng.choice(AIMS.get(aim, [""])),
            rng.randint(1, {"checkpoint": 12, "validation": 6, "start": 3}.get(aim, 2)),
        )
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if target:
                    wrap(target, deadly(number))
                wrap("kleiber.runs.stage.run_stage", self._enter)
                silence()
                from kleiber.launch.main import main

                os._exit(main([*command, f"root={root}"]))
            finally:
                os._exit(99)

    def end(self) -> int:
        """The exit code, or minus the signal that ended it."""
        while not self._began() and not self._ended():
            time.sleep(0.001)
        began = time.monotonic()
        if self.after_s is not None:
            self._wait_to_kill(self.after_s)
            os.kill(self._victim(), signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while self.ranks and alive(self.root):
            time.sleep(0.05)
        self.seconds = time.monotonic() - began
        return code

    def _began(self) -> bool:
        """Whether the first stage has begun."""
        return any(self.root.glob("*/*/summary.json")) if self.ranks else bool(self.shared[0])

    def _wait_to_kill(self, seconds: float) -> None:
        """Waits some seconds; for ranks, which start slowly, until a random checkpoint exists."""
        pattern = f"*/*/stages/*/checkpoints/step-{self.rng.choice((4, 8, 12, 16)):08d}"
        while self.ranks and not any(self.root.glob(pattern)) and not self._ended():
            time.sleep(0.01)
        time.sleep(self.rng.uniform(0, 0.1) if self.ranks else seconds)

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _victim(self) -> int:
        """The process to kill: the run, or the process of one of its ranks."""
        processes = alive(self.root) if self.ranks else {}
        ranks = [pid for pid, line in processes.items() if "launch.process" in line and "launch.ranks" not in line]
        return self.rng.choice([self.pid, *(pid for pid in ranks if rank_of(pid))])

    def _enter(self, original: Callable, *arguments: Any, **keywords: Any) -> Any:
        self.shared[0] = 1
        return original(*arguments, **keywords)


def silence() -> None:
    """Sends the output of this process nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def wrap(target: str, around: Callable) -> None:
    module, name = target.rsplit(".", 1)
    owner = importlib.import_module(module)
    original = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **keywords: around(original, *arguments, **keywords))


def deadly(number: int) -> Callable:
    """The `number`-th call is a SIGKILL."""
    calls = []

    def kill(original: Callable, *arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    return kill


def facts(root: Path) -> dict[str, Any]:
    """What a run left on disk by the name of the file, without times: digests of weights, rows, texts, the summary."""
    (folder,) = root.glob("*/*")
    results: dict[str, Any] = {}
    for stage in sorted(folder.glob("stages/*")):
        for points in (path for path in stage.iterdir() if path.is_dir()):
            newest = max(points.glob("step-????????"), default=None)
            meta = {} if newest is None else json.loads((newest / "meta.json").read_text())
            results[f"weights {stage.name}/{points.name}"] = (
                meta.get("step"),
                meta.get("sha256", {}).get("model.safetensors"),
            )
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if not key.startswith(TIMES)} for row in rows]
    results["metrics.jsonl"] = [row for row in rows if row.keys() - {"stage", "step"}]
    lines = (folder / "metrics.csv").read_text().splitlines()
    results["metrics.csv"] = [line for line in lines if not any(name in line for name in TIMES)]
    for path in sorted([*folder.glob("samples.txt"), *folder.glob("classes/*.json")]):
        results[str(path.relative_to(folder))] = path.read_text()
    results["summary.json"] = without_times(json.loads((folder / "summary.json").read_text()))
    return results


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        names = [name for name in value if name not in (*TIMED, "cost", "run_id", "overrides", "commit", "dirty")]
        return {name: without_times(value[name]) for name in names if not name.startswith(TIMES)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def counts(root: Path) -> bool:
    """Whether a kill found a checkpoint and an unfinished run."""
    written = any(root.glob("*/*/stages/*/checkpoints/step-????????/meta.json"))
    return written and not any(
        '"status": "finished",\n "error"' in path.read_text() for path in root.glob("*/*/summary.json")
    )


def aims_for(kind: str, kills: int, rng: random.Random) -> list[str]:
    """Where the kills of a kind are aimed at, in random order."""
    aims = [] if kind == "ddp" else ["checkpoint"] * (kills // 3)
    for aim in () if kind == "ddp" else ("validation", "late", "start"):
        aims += [aim] * (kills // 6 + (kills % 6 > 2))
    aims = (aims + ["anywhere"] * kills)[:kills]
    return rng.sample(aims, kills)


def attack(kind: str, command: list[str], home: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kills runs of one kind; returns kills by aim, numbers of starts and runs, and differences of finished runs."""
    Child(command, home / "warm", "none", rng, 0).end()  # builds the token cache
    unbroken = Child(command, home / "unbroken", "none", rng, 0)
    assert unbroken.end() == 0, f"{kind}: the unbroken run fails"
    expected, aims = facts(home / "unbroken"), aims_for(kind, kills, rng)
    result: dict[str, Any] = {"kind": kind, "kills": Counter(), "starts": 0, "runs": 1, "different": []}
    while True:
        root, aim = home / f"run{result['runs']}", aims[-1] if aims else "none"
        if aim == "start" and not counts(root):  # there is nothing to resume from yet
            aim = "anywhere"
        child = Child(command, root, aim, rng, unbroken.seconds)
        code = child.end()
        result["starts"] += 1
        if code == 0:
            ours = facts(root)
            names = sorted(name for name in ours.keys() | expected.keys() if ours.get(name) != expected.get(name))
            result["different"] += [{"run": str(root), "files": names}] if names else []
            if not aims:
                return result
            result["runs"] += 1
            rng.shuffle(aims)
        elif code in (-signal.SIGKILL, 1, 75) and aims and (code < 0 or child.ranks):
            if counts(root):
                result["kills"][aim] += 1
                aims.remove(aim if aim in aims else aims[-1])
            rng.shuffle(aims)  # the kill may come too early for this aim each time
        else:
            result["different"].append({"run": str(root), "files": [f"exit code {code}"]})
            return result
        assert result["starts"] < 20 * kills + 20, f"{kind}: {len(aims)} kills still to come"


def campaign(home: Path, kills: int, kinds: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """The results of `attack` for each kind; the kills are divided evenly."""
    for module in ("runs.run", "runs.stage", "training.loggers", "training.callbacks.after_training", "launch.main"):
        importlib.import_module(f"kleiber.{module}")
    rng, results = random.Random(seed), []
    more = home / "more.txt"
    more.write_text((DATA / "tiny.txt").read_text()[::-1])
    assert Child([*TINY, *OFTEN], home / "base", "none", rng, 0).end() == 0
    (base,) = (home / "base").glob("*/*")
    for number, kind in enumerate(kinds):
        often = [text for text in OFTEN if not text.startswith(EXCLUDED.get(kind, ()))]
        command = [*TINY, *often, *KINDS[kind]]
        command = [text.replace("{base}", str(base)).replace("{more}", str(more)) for text in command]
        share = kills // len(kinds) + (number < kills % len(kinds))
        results.append(attack(kind, command, home / kind.replace(" ", "_"), share, rng))
        print(report(results[-1]), flush=True)
    return results


def report(result: dict[str, Any]) -> str:
    kills, different = result["kills"], result["different"]
    places = ", ".join(f"{aim} {number}" for aim, number in sorted(kills.items()))
    outcome = f"{result['runs'] - len(different)}/{result['runs']} equal"
    numbers = f"{result['kind']:14} {sum(kills.values()):3} kills  {result['starts']:3} starts"
    return f"{numbers}  {outcome}  ({places})  {different or ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--home", type=Path, help="folder for the runs, which are then kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("KLEIBER_CACHE", f"{home}/cache")
        results = campaign(home, options.kills, options.kinds, options.seed)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    sys.exit(any(result["different"] for result in results))


if __name__ == "__main__":
    main()
