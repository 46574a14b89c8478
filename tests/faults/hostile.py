"""Folders as a stranger could make them, as a function of a seed: links, pipes, devices, bombs, escapes and odd rows.

`make_hostile` changes one place of a study's folder. `run_limited` runs a command in a fork and measures its time and
memory, and `failure` says what no command may do with such a folder: hang, fill the memory, print a traceback or an
escape of a terminal, or change a file elsewhere.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import shutil
import socket
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from fake_run import fake_run, fake_stage

HUGE = 3 * 2**30  # bytes of a file of nothing but a hole
ESCAPES = "\udcff\x1b]0;owned\x07\x1b[2J\x9b31m\x85\u202e</script><script>alert(1)</script>"
FILES = (
    "report.html", "findings.json", "laws.json", "study.yaml", "runs.jsonl.gz", "curves.html", "curves.png",
    "{run}/config.yaml", "{run}/overrides.yaml", "{run}/summary.json", "{run}/metrics.jsonl", "{run}/metrics.csv",
    "{run}/log.txt", "{run}/samples.txt", "{run}/.lock", "{run}/curves.html", "{run}/evals/perplexity.json",
    "figures/curves.png", "figures/curves.svg", "table.csv", "table.jsonl", "table.parquet", "{run}/run.wandb",
    "{step}/state.pt", "{step}/model.safetensors", "{step}/meta.json", "{run}/tokenizer/tokenizer.json",
)  # fmt: skip
FOLDERS = (
    "figures", "{run}/evals", "{run}/evals/figures", "{run}/stages", "{run}/stages/main",
    "{run}/stages/main/checkpoints", "{run}/classes", "{run}/tokenizer", "{run}/wandb", "{run}/tensorboard",
    "{run}/ranks", "{step}",
)  # fmt: skip
NAMES = (
    ".x.part-" + "9" * 30, ".summary.json.part-" + "1" * 200, "step-00000001.part-" + "7" * 30, "step-99999999",
    "a\nkleiber: all is well", "\x1b[31mred", "-rf", "..x", "\udcff",
)  # fmt: skip


def make_study(home: Path, runs: int = 3) -> Path:
    """Writes the folder of a study as finished runs leave it, without training; returns it."""
    study = home / "study"
    for number in range(runs):
        stage = fake_stage(metrics={"val/docs/loss": 3.0 - number / 10}, lr=0.01, params=1000 * (number + 1))
        model = {"_target_": "kleiber.models.Transformer", "depth": number + 1, "width": 64, "context": 32}
        config = {"model": model, "batch": {"tokens": 100}, "seed": 0, "name": "study", "study": None}
        rows = [{"step": step, "train/loss": 4.0 / step, "train/lr": 0.01} for step in range(1, 5)]
        folder = fake_run(
            study / f"depth={number + 1}-{number:08x}", [stage], config=config, rows=rows,
            overrides=[f"model.depth={number + 1}"],
        )  # fmt: skip
        (folder / "evals").mkdir()
        (folder / "evals/perplexity.json").write_text('{"scores": {}, "details": {}, "settings": {}}')
    from kleiber.records.catalog import archive_runs

    archive_runs(study)
    text = "".join(f"{size},{size * 20},{3 + 100 / size}\n" for size in range(1000, 9000, 1000))
    (study / "table.csv").write_text("N,D,L\n" + text)
    return study


def make_hostile(study: Path, outside: Path, seed: int) -> str:
    """Changes one place of a study's folder, and returns what was done.

    outside  a folder elsewhere, to which links lead
    """
    rng = random.Random(seed)
    outside.mkdir(parents=True, exist_ok=True)
    for name in ("thesis.txt", "notes/thesis.txt"):
        (outside / name).parent.mkdir(exist_ok=True)
        (outside / name).write_text("my thesis\n")
    return rng.choice(ATTACKS)(rng, study, outside)


def _place(rng: random.Random, study: Path, names: tuple[str, ...]) -> Path:
    """A random one of the places of a study's folder, with nothing there yet."""
    homes = sorted(path.parent for path in study.glob("*/config.yaml"))
    run = rng.choice(homes)
    steps = sorted(run.glob("stages/*/checkpoints/step-????????"))
    step = rng.choice(steps) if steps else run / "stages/main/checkpoints/step-00000001"
    path = study / rng.choice(names).format(run=run.name, step=step.relative_to(study))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def _archive(study: Path) -> Path:
    """The runs.jsonl.gz of a study, which has its runs."""
    from kleiber.records.catalog import archive_runs

    archive_runs(study)
    return study / "runs.jsonl.gz"


def link_file(rng: random.Random, study: Path, outside: Path) -> str:
    path = _place(rng, study, FILES)
    target = rng.choice([str(outside / "thesis.txt"), str(outside / "new.txt"), "/dev/zero", "/dev/tty", path.name])
    path.symlink_to(target)
    return f"{path.relative_to(study)} -> {target}"


def link_folder(rng: random.Random, study: Path, outside: Path) -> str:
    path = _place(rng, study, FOLDERS)
    target = rng.choice([outside / "notes", outside, Path("/"), path.parent, outside / "nothing"])
    path.symlink_to(target)
    return f"{path.relative_to(study)}/ -> {target}"


def other_kind(rng: random.Random, study: Path, outside: Path) -> str:
    path = _place(rng, study, FILES)
    kind = rng.choice(["pipe", "socket", "folder"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    return f"{path.relative_to(study)} is a {kind}"


def hole(rng: random.Random, study: Path, outside: Path) -> str:
    """A file of 3 GiB that takes no room, with or without the beginning of one that is read."""
    path = _place(rng, study, FILES)
    begin = rng.choice([b"", b"{", b"N,D,L\n1,2,3\n", b"\x1f\x8b", b":W&B" + bytes(3), b'{"step": 1}\n'])
    path.write_bytes(begin)
    os.truncate(path, HUGE)
    return f"{path.relative_to(study)} has 3 GiB after {begin!r}"


def values(rng: random.Random, study: Path, outside: Path) -> str:
    """A JSON text whose values take many times its size."""
    path = _place(rng, study, tuple(name for name in FILES if name.endswith((".json", "l", ".pt"))))
    text = rng.choice(["[" * 100_000, '{"a":' * 50_000, "{" + '"a":[' + "[]," * 20_000_000 + "[]]}", "9" * 4000])
    path.write_text(f'{{"step": {text}}}\n' if text == "9" * 4000 else text)
    return f"{path.relative_to(study)} has {text[:5]}... ({len(text):,})"


def table_bomb(rng: random.Random, study: Path, outside: Path) -> str:
    import pyarrow
    import pyarrow.parquet

    kind = rng.choice(["parquet", "wide", "text"])
    if kind == "wide":
        (study / "table.csv").write_text(",".join(f"c{number}" for number in range(200_000)) + "\n1\n")
        return "table.csv has 200,000 columns"
    if kind == "text":  # 3 GB, more than the offsets of a plain column of texts reach
        column = pyarrow.DictionaryArray.from_arrays(pyarrow.repeat(0, 300_000), ["x" * 10_000])
    else:
        column = pyarrow.repeat(1.0, 200_000_000)
    pyarrow.parquet.write_table(pyarrow.table({"N": column, "D": column, "L": column}), study / "table.parquet")
    return f"table.parquet has equal rows of {kind}"


def archive_bomb(rng: random.Random, study: Path, outside: Path) -> str:
    path = _archive(study)
    line = gzip.decompress(path.read_bytes()).splitlines(keepends=True)[0]
    kind = rng.choice(["rows", "zeros", "values"])
    block = {"rows": line * (2**24 // len(line)), "zeros": bytes(2**24), "values": b"[]," * 2**22}[kind]
    member = gzip.compress(block, 9)
    path.write_bytes(member * (HUGE // 2**24))
    return f"runs.jsonl.gz has 3 GiB of {kind} in {path.stat().st_size:,} bytes"


def odd_rows(rng: random.Random, study: Path, outside: Path) -> str:
    path = _archive(study)
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    key, value = rng.choice([
        ("config", None), ("config", [1]), ("config", "x"), ("config", {}), ("config", {"model": None, "batch": 3}),
        ("config", {"seed": 10**4000}), ("config", {"name": ESCAPES}), ("rows", None), ("rows", [None]), ("rows", {}),
        *(
            ("rows", {"order": [0], "kinds": [columns]})
            for columns in (
                {"step": [10**4000]}, {"step": [1], "train/loss": [10**4000]}, {"step": ["1"]}, {"step": {}},
                {"step": [1], "stage": [[1]], "train/loss": [{}]}, {"step": [1], ESCAPES: [1.0]},
            )
        ),
        ("run", ["x"]), ("run", None), ("run", "../x"), ("run", "a\x9bb"), ("run", 3), ("summary", None),
        ("summary", {}), ("summary", []), ("summary", {**rows[0]["summary"], "status": ESCAPES}),
        ("summary", {**rows[0]["summary"], "stages": None}), ("summary", {**rows[0]["summary"], "seed": 10**4000}),
        ("summary", {**rows[0]["summary"], "error": ESCAPES}),
        ("summary", {**rows[0]["summary"], "overrides": [ESCAPES]}),
    ])  # fmt: skip
    rows[rng.randrange(len(rows))][key] = value
    with contextlib.suppress(AttributeError):
        sys.set_int_max_str_digits(0)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    sys.set_int_max_str_digits(4300)
    for run in study.glob("*/config.yaml"):  # so that the rows are all that there is
        shutil.rmtree(run.parent)
    return f"runs.jsonl.gz has {key}={str(value)[:60] if key != 'config' else type(value).__name__}"


def escapes(rng: random.Random, study: Path, outside: Path) -> str:
    """Escapes of a terminal and of a page wherever a record may have a text."""
    run = rng.choice(sorted(path.parent for path in study.glob("*/config.yaml")))
    kind = rng.choice(["summary", "metrics", "config", "overrides", "error", "rows"])
    summary = json.loads((run / "summary.json").read_text())
    if kind == "summary":
        summary |= {"name": ESCAPES, "study": ESCAPES, "versions": {"torch": ESCAPES}}
    elif kind == "metrics":
        summary["stages"][-1]["metrics"] = {f"val/{ESCAPES}/loss": 2.0}
    elif kind == "error":
        summary |= {"status": "failed", "error": ESCAPES}
    elif kind == "overrides":
        summary["overrides"] = [f"a={ESCAPES}"]
        (run / "overrides.yaml").write_text(json.dumps([f"a={ESCAPES}"]))
    elif kind == "config":
        (run / "config.yaml").write_text(json.dumps({"name": ESCAPES, ESCAPES: ESCAPES, "batch": {"tokens": 9}}))
    else:
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "stage": ESCAPES, f"train/{ESCAPES}": 1.0}) + "\n")
    (run / "summary.json").write_text(json.dumps(summary))
    return f"{run.name}: escapes in {kind}"


def names(rng: random.Random, study: Path, outside: Path) -> str:
    folders = [study, *(path for path in study.rglob("*") if path.is_dir() and not path.is_symlink())]
    folder, name = rng.choice(folders), rng.choice(NAMES)
    with contextlib.suppress(OSError):  # a name that the file system does not take
        if rng.random() < 0.5:
            (folder / name).mkdir()
            (folder / name / "config.yaml").write_text("a: 1\n")
        else:
            (folder / name).write_text("")
    return f"{folder.relative_to(study)} has {name[:40]!r}"


def odd_checkpoint(rng: random.Random, study: Path, outside: Path) -> str:
    """A checkpoint that names files elsewhere, or whose files have the right hash and another content."""
    steps = sorted(study.glob("*/stages/*/checkpoints/step-????????"))
    run = rng.choice(sorted(path.parent for path in study.glob("*/config.yaml")))
    step = rng.choice(steps) if steps else run / "stages/main/checkpoints/step-00000001.part-999999999"
    step.mkdir(parents=True, exist_ok=True)
    meta = json.loads((step / "meta.json").read_text()) if (step / "meta.json").is_file() else {"step": 1, "sha256": {}}
    kind = rng.choice(["device", "above", "state", "zip", "header", "long header", "offsets"])
    if kind in ("device", "above"):
        meta["sha256"]["/dev/zero" if kind == "device" else "../../../../../../x"] = "0" * 64
    elif kind in ("state", "zip"):
        if kind == "state":
            import torch

            torch.save(3, step / "state.pt")
        else:
            with zipfile.ZipFile(step / "state.pt", "w", zipfile.ZIP_DEFLATED) as file:
                file.writestr("archive/data.pkl", bytes(2**28))
        meta["sha256"]["state.pt"] = hashlib.sha256((step / "state.pt").read_bytes()).hexdigest()
    else:
        header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999]}}' if kind == "offsets" else b"{}x"
        length = 2**60 if kind == "long header" else len(header)
        (step / "model.safetensors").write_bytes(struct.pack("<Q", length) + header)
        meta["sha256"]["model.safetensors"] = hashlib.sha256((step / "model.safetensors").read_bytes()).hexdigest()
    (step / "meta.json").write_text(json.dumps(meta))
    return f"{step.relative_to(study)}: {kind}"


def odd_study(rng: random.Random, study: Path, outside: Path) -> str:
    text = rng.choice([
        "_target_: kleiber.models.Transformer", "_target_: kleiber.studies.Compare\n_partial_: true", "a: 1", "[1]",
        "_target_: [1]", "_target_: kleiber.studies", "_target_: os.getcwd", "a: &a [1]\nb: *a", "a: 2001-13-45",
        "_target_: kleiber.studies.Scaling\nlaw: 3", "\x00", "_target_: kleiber.data.Text\npath: /etc/passwd",
    ])  # fmt: skip
    (study / "study.yaml").write_text(text)
    return f"study.yaml has {text!r}"


ATTACKS: tuple[Callable[[random.Random, Path, Path], str], ...] = (
    link_file, link_file, link_folder, link_folder, other_kind, other_kind, hole, hole, values, table_bomb,
    archive_bomb, odd_rows, odd_rows, escapes, escapes, names, odd_checkpoint, odd_study,
)  # fmt: skip
