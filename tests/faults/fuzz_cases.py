"""Random cases for the standing attack (`fuzz.py`): commands that train, damage of files, and tables of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from small_run import TINY
from topic_choices import missing_topics

from kleiber.config.compose import list_choices

SMALL = ["model.width=32", "model.num_heads=2", "model.depth=1", "model.context=32", "budget.steps=1"]
GROUPS = (
    "model/attention", "model/mlp", "model/router", "model/parametrization", "optimizer", "schedule", "callbacks",
    "retention", "adapter", "stages",
)  # fmt: skip
ROWS = {
    "instruct": {"instruction": "Say {n}.", "input": "", "output": "It is {n}."},
    "preference": {"prompt": "Say {n}.", "chosen": "It is {n}.", "rejected": "No, not {n}."},
    "unpaired": {"prompt": "Say {n}.", "completion": "It is {n}.", "label": True},
    "labelled": {"text": "This is number {n}.", "label": "even"},
}
KINDS_OF_RUN = (
    [], ["model=moe"], ["model=bert", "objective=mlm"], ["data=instruct", "objective=sft"],
    ["data=preference", "objective=dpo"], ["data=unpaired", "objective=kto"], ["data=preference", "objective=reward"],
    ["data=labelled", "objective=classify"], ["init=checkpoint", "init.path={base}"],
    ["init=checkpoint", "init.path={base}", "adapter=lora"], ["init=checkpoint", "init.path={base}", "retention=ewc"],
    ["stages=trunk_and_cooldowns", "stages.branches=[2k,4k]"], ["objective=distill", "objective.teacher={base}"],
    ["data=builtin"], *([] if missing_topics(["data=recall"]) else [["data=recall"]]),
)  # fmt: skip
INTEGERS = ["0", "1", "-1", "2", "3", "7", "64", "1000000000", "-1000000000000"]
FLOATS = ["0.0", "1.0", "-.5", ".5", "1e-9", "1e30", "2.0", "nan", "inf", "-inf"]
TEXTS = [
    "null",
    "true",
    "false",
    "''",
    "x",
    "../x",
    "x" * 300,
    "\u00e9",
    "[]",
    "{}",
    "[1,2]",
    "{a:1}",
    "auto",
    "[null]",
]
NOT_ATTACKED = ("hydra", "root", "launcher", "logger", "trainer", "dry_run", "resume", "data.path", "data.parts")


def write_rows(home: Path) -> None:
    """Writes a small file for each kind of labelled data."""
    for kind, row in ROWS.items():
        lines = []
        for n in range(40):
            filled = {key: value.format(n=n) if isinstance(value, str) else n % 2 == 0 for key, value in row.items()}
            if kind == "labelled":
                filled["label"] = "even" if n % 2 == 0 else "odd"
            lines.append(json.dumps(filled))
        (home / f"{kind}.jsonl").write_text("\n".join(lines) + "\n")


@cache
def choices() -> dict[str, list[str]]:
    """The names of the choices of each group."""
    return {group: [name for name in list_choices(group) if "/" not in name] for group in GROUPS}


@cache
def values_of(command: tuple[str, ...]) -> dict[str, object]:
    """The keys of a composed config with their values, and arguments of its classes; {} where it is refused."""
    from kleiber.config.compose import Composer, resolve_config
    from kleiber.config.errors import ConfigError
    from kleiber.config.targets import SUPPLIED, signature

    def leaves(node: Mapping, path: str) -> dict[str, object]:
        inside = {name: value for name, value in node.items() if name != "_target_"}
        if "_target_" in node:
            parameters = signature(node["_target_"]).parameters
            inside = {name: argument.default for name, argument in parameters.items() if name not in SUPPLIED} | inside
        found = {}
        for name, value in inside.items():
            nested = isinstance(value, Mapping) and value
            found |= leaves(value, f"{path}{name}.") if nested else {f"{path}{name}": value}
        return found

    try:
        config, _ = resolve_config(Composer("train", None).compose(list(command)))
        return {key: value for key, value in leaves(config, "").items() if not key.startswith(NOT_ATTACKED)}
    except ConfigError:
        return {}


def values_like(value: object) -> list[str]:
    """Texts of the type of a value."""
    if isinstance(value, bool):
        return ["true", "false"]
    if isinstance(value, int):
        return INTEGERS
    return FLOATS if isinstance(value, float) else [*INTEGERS, *FLOATS, *TEXTS]


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """The overrides of a random run; `{base}` and `{home}` stand for folders."""
    kind = draw(st.sampled_from(KINDS_OF_RUN))
    chosen = draw(st.lists(st.sampled_from(GROUPS), max_size=2, unique=True))
    groups = [f"{group}={draw(st.sampled_from(choices()[group]))}" for group in chosen]
    command = [*TINY, *SMALL, *kind, *groups]
    named = [line.removeprefix("data=") for line in kind if line.startswith("data=")]
    if named:
        command = [line for line in command if not line.startswith(("data=text", "data.path"))]
        command += [f"data.path={{home}}/{named[0]}.jsonl"] if named[0] in ROWS else []
    values = values_of(tuple(line for line in command if "{" not in line))
    for key in draw(st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True)) if values else []:
        texts = values_like(values[key]) if draw(st.integers(0, 3)) else [*INTEGERS, *FLOATS, *TEXTS]
        command.append(f"++{key}={draw(st.sampled_from(texts))}")
    return command


COMMANDS = ("resume", "resume", "runs", "eval", "export", "report")
DAMAGES = ("flip", "flip", "cut", "nul", "empty", "garbage", "delete", "folder", "loop", "json {}", "json []")
damages = st.tuples(
    st.sampled_from(["part", "whole"]), st.sampled_from(COMMANDS), st.sampled_from(DAMAGES), st.floats(0, 1),
    st.floats(0, 1), st.integers(0, 255),
)  # fmt: skip


def damage(path: Path, how: str, position: float, value: int) -> None:
    """Damages one file."""
    data = path.read_bytes()
    at = int(position * max(len(data) - 1, 0))
    if how in ("delete", "folder", "loop"):
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "loop":
            path.symlink_to(path.name)
        return
    changed = {
        "flip": data[:at] + bytes([(data[at] ^ (value or 1)) if data else 0]) + data[at + 1 :],
        "cut": data[:at], "nul": data[:at] + b"\0" * (len(data) - at), "empty": b"",
        "garbage": bytes((at + 37 * i + value) % 256 for i in range(len(data))), "json {}": b"{}", "json []": b"[]",
    }  # fmt: skip
    path.write_bytes(changed[how])


CELLS = [
    "",
    "nan",
    "inf",
    "-1",
    "0",
    "1e-300",
    "1e300",
    "x",
    "1e6",
    "3.2",
    "2.5e9",
    "\u00e9",
    "=1+1",
    "<script>",
    "1e19",
]
OPTIONS: tuple[str, ...] = (
    "--law kaplan", "--map N=params,D=tokens,L=loss", "--by x", "--where N>1e6", "--where ((", "--level .5",
    "--level 2", "--fix E=1", "--fix E=nan", "--bootstrap 20", "--backtest 1e20", "--sigma x", "--cluster x",
    "--exclude none", "--delta 0", "--delta -1", "--loss-fn lad", "--law nothing", "--at E=1", "--space linear",
    "--rank",
)  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """Text of a table of runs of which some cells or columns are changed, its format, and options of `kleiber fit`."""
    sizes, lengths = draw(st.sampled_from([1, 2, 4, 5, 6])), draw(st.sampled_from([1, 2, 3, 4, 5]))
    N, D = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e6, 1e8, sizes), np.geomspace(1e8, 1e10, lengths)))
    loss = 1.7 + 400 * N**-0.34 + 400 * D**-0.28 + 0.003 * np.sin(np.arange(len(N)))
    columns = ["N", "D", "loss", "x"]
    if not draw(st.integers(0, 5)):
        columns = draw(st.permutations(columns))[: draw(st.integers(1, 4))]
    content = {"N": N, "D": D, "loss": loss, "x": np.arange(len(N)) % 3}
    rows = [[f"{content[name][i]:.8g}" for name in columns] for i in range(len(N))]
    for _ in range(draw(st.sampled_from([0, 0, 1, 5]))):
        row, column = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(columns) - 1))
        rows[row][column] = draw(st.sampled_from(CELLS))
    names = columns if draw(st.integers(0, 7)) else draw(st.sampled_from([["N"] * len(columns), ["", *columns[1:]]]))
    options = draw(st.lists(st.sampled_from(OPTIONS), max_size=2, unique=True))
    kind = draw(st.sampled_from(["csv", "jsonl"]))
    if kind == "csv":
        return "\n".join([",".join(names), *(",".join(row) for row in rows)]), kind, options
    numbers = [dict(zip(names, [as_number(cell) for cell in row], strict=True)) for row in rows]
    return "\n".join(json.dumps(row) for row in numbers), kind, options


def as_number(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
