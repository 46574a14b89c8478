"""The command `kleiber plan`: from hours to a model, with a forecast of its loss that is written before the training.

The law says which size has the least loss with the tokens that can be read in the time. How many that are is measured:
a few steps of models around the optimum are trained in a scratch folder, as in a dry run.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kleiber.config.errors import ExitCode
from kleiber.records.forecast import FILE, HASH, SCHEMA
from kleiber.records.terminal import print_line
from kleiber.types import Json, Row

if TYPE_CHECKING:
    from kleiber.studies.laws.law import Law

GOLDEN = Path(__file__).with_name("golden_law.json")  # what predictions need of multirun/golden/laws.json
# The recipe of golden's runs, for which its law holds; heads have 16 channels.
RECIPE = (
    "model=gpt", "model.depth=2", "model.context=128", "data=builtin", "batch.tokens=1024", "optimizer.lr=0.015",
    "optimizer.betas=[0.9,0.98]", "schedule=wsd", "eval.every_steps=0", "eval.tokens=512K",
)  # fmt: skip
HEAD = 16
WIDTHS = (32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024)
NEAR = 2  # widths on each side of the first guess that are compared
GUESSED_FLOPS = 2e10  # of a device in a second, for the choice of widths that are measured
PARAMS_OF_WIDTH = 26.0  # active parameters over width^2 of the recipe, for the same choice
MEASURED_TOKENS = 1_000_000
FEWEST_STEPS = 50
NOT_PLANNED = ("budget.", "stages", "design", "study")  # keys that the plan sets, or that make more than one run


@dataclass(frozen=True)
class Candidate:
    """A model that can be trained in the time: its overrides, size, tokens, and its speed on all devices.

    seconds  of the run, with evaluation
    """

    overrides: list[str]
    params: int
    tokens: int
    tokens_per_s: float
    seconds: float


def plan(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDES", help="of the run, such as model.depth=4", show_default=False),
    ] = None,
    hours: Annotated[float, typer.Option(metavar="H", help="duration of the training in hours")] = 1.0,
    devices: Annotated[int, typer.Option(min=1, help="processes that share a step; speed is assumed to add up")] = 1,
    laws: Annotated[
        Path | None,
        typer.Option(
            metavar="LAWS.json", help="law of N and D, of runs like this one; default: that of multirun/golden"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="where to write the forecast")] = Path(FILE),
) -> None:
    """Plan a run of so many hours: size, tokens, rate and batch, with a forecast of the loss and its interval.

    The speed of this machine is measured in a few steps. The forecast is written before the training, to
    ./forecast.json; `kleiber report` of the trained run says whether its loss came out inside. The last line is the
    command that trains the run.
    """
    from kleiber.records.files import write_json

    if not 0 < hours < math.inf:
        raise ValueError(f"--hours {hours:g} must be a finite number > 0")
    record, form = read_law(laws)
    recipe = check_overrides(overrides or [])
    chosen = best(candidates(recipe, hours, devices, record, form), record, form)
    forecast = forecast_of(chosen, hours, devices, record, form)
    write_json(out, forecast)
    print_line("\n".join([*lines(forecast, record), f"forecast: {out}", forecast["command"]]))
    raise typer.Exit(ExitCode.DONE)


def read_law(path: Path | None) -> tuple[Json, Law]:
    """Reads the law that the plan follows. Raises ValueError for a law of other inputs, or one that was refused."""
    from kleiber.studies.laws.laws_json import law_of, read

    where = path or GOLDEN
    record = read(where)
    if record["schema"] != "kleiber.law/1":
        raise ValueError(f"--laws {where} has one law for each value of {record['by']}: fit one of them to a file")
    form = law_of(record)
    if set(form.inputs) != {"N", "D"}:
        raise ValueError(f"--laws {where}: a plan needs a law of N and D, and {form.name!r} is one of {form.inputs}")
    refusals = [verdict["text"] for verdict in record["verdicts"] if verdict["level"] == "refuse"]
    if refusals or not record["draws"]:
        raise ValueError(f"--laws {where}: {refusals[0] if refusals else 'the law has no intervals'}")
    return record, form


def check_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns the recipe with overrides in place of its keys. Raises ValueError for keys that the plan sets itself."""
    from kleiber.launch.command_line import refuse_repeated_keys

    refuse_repeated_keys(overrides)
    keys = [line.lstrip("+~").partition("=")[0] for line in overrides]
    for key in keys:
        if key.startswith(NOT_PLANNED):
            raise ValueError(f"{key}: a plan chooses the tokens of one run; remove {key}")
    return [*(line for line in RECIPE if line.partition("=")[0] not in keys), *overrides]


def candidates(recipe: Sequence[str], hours: float, devices: int, record: Row, form: Law) -> list[Candidate]:
    """Returns the models around the optimum with the tokens that each reads in the time.

    Raises ValueError where the speed cannot be measured, and where no model can be trained in the time.
    """
    from kleiber.launch.main import compose_config
    from kleiber.launch.price import estimate_costs

    budget = hours * 3600.0 * devices * GUESSED_FLOPS
    lines = [with_width(recipe, width) for width in widths_near(budget, record, form)]
    if any(line.startswith(("model.width=", "model.aspect=")) for line in recipe):
        lines = [list(recipe)]
    configs = [compose_config([*each, f"budget.tokens={MEASURED_TOKENS}"]) for each in lines]
    threads = configs[0]["trainer"].get("threads")
    estimate = estimate_costs({Path(f"plan-candidate-{i}"): config for i, config in enumerate(configs)}, threads)
    if any(cell["seconds"] is None for cell in estimate["cells"]):
        raise ValueError(f"the speed of this machine is unknown: {estimate['unmeasured']}")
    models = []
    for each, config, cell in zip(lines, configs, estimate["cells"], strict=True):
        per_token = cell["seconds_per_token"] / devices
        once = max(0.0, cell["seconds"] - cell["tokens"] * cell["seconds_per_token"]) + estimate["start"]
        batch = config["batch"]["tokens"]
        steps = int((hours * 3600.0 - once) / per_token // batch)
        if steps >= FEWEST_STEPS:
            tokens = round_down(steps * batch)
            ddp = [] if any(line.startswith("trainer=") for line in each) else ["trainer=ddp"]
            shared = [*ddp, f"trainer.devices={devices}"] if devices > 1 else []
            models.append(
                Candidate(
                    [*each, *shared, f"budget.tokens={tokens}"], cell["active"], tokens, 1 / per_token,
                    once + tokens * per_token,
                )
            )  # fmt: skip
    if not models:
        raise ValueError(f"--hours {hours:g} is too short for {FEWEST_STEPS} steps of any model: give it more time")
    return models


def widths_near(flops: float, record: Row, form: Law) -> list[int]:
    """Returns the widths around that of the least loss for a number of FLOPs."""
    from kleiber.studies.laws.prediction import fitted_values

    def loss(width: int) -> float:
        import numpy as np

        N = PARAMS_OF_WIDTH * width**2
        return float(form.predict({"N": np.array([N]), "D": np.array([flops / (6 * N)])}, fitted_values(record))[0, 0])

    place = min(range(len(WIDTHS)), key=lambda i: loss(WIDTHS[i]))
    return list(WIDTHS[max(0, place - NEAR) : place + NEAR + 1])


def with_width(recipe: Sequence[str], width: int) -> list[str]:
    """Returns overrides with a width, and with heads of HEAD channels unless they set the number of heads."""
    heads = [] if any(line.startswith("model.num_heads=") for line in recipe) else [f"model.num_heads={width // HEAD}"]
    return [*recipe, f"model.width={width}", *heads]


def round_down(tokens: int) -> int:
    """Returns a number of tokens with three significant digits, and no more than `tokens`."""
    unit = 10 ** max(len(str(tokens)) - 3, 0)
    return tokens // unit * unit


def best(models: Sequence[Candidate], record: Row, form: Law) -> Candidate:
    """Returns the model with the least predicted loss. Raises ValueError where all are too far from the law's runs."""
    from kleiber.studies.laws.prediction import predict

    answers = [predict(record, form, {"N": float(each.params), "D": float(each.tokens)}) for each in models]
    inside = [i for i, answer in enumerate(answers) if "refused" not in answer]
    if not inside:
        raise ValueError(f"the law predicts none of these runs: they are {answers[0]['refused']}")
    return models[min(inside, key=lambda i: answers[i]["value"])]


def forecast_of(chosen: Candidate, hours: float, devices: int, record: Row, form: Law) -> Json:
    """Returns the content of forecast.json."""
    from kleiber.launch.main import compose_config
    from kleiber.records.folder import config_hash
    from kleiber.studies.laws.prediction import predict

    config = compose_config(chosen.overrides)
    answer = predict(record, form, {"N": float(chosen.params), "D": float(chosen.tokens)})
    return {
        "schema": SCHEMA, "config_hash": config_hash(config)[:HASH], "written": datetime.now(UTC).isoformat(),
        "command": train_command(chosen.overrides), "overrides": chosen.overrides, "hours": hours,
        "devices": devices, "params": chosen.params, "tokens": chosen.tokens, "lr": config["optimizer"]["lr"],
        "batch_tokens": config["batch"]["tokens"],
        "predicted": {"value": answer["value"], "lo": answer["run_lo"], "hi": answer["run_hi"], "law_lo": answer["lo"],
                      "law_hi": answer["hi"], "level": record["level"], "decades": answer["decades"],
                      "farthest": answer["farthest"]},
        "law": {"name": form.name, "formula": form.formula, "source": form.source,
                "params": {name: value["value"] for name, value in record["params"].items()}},
        "speed": {"tokens_per_s": chosen.tokens_per_s, "seconds": chosen.seconds, "source": "measured in a few steps"},
    }  # fmt: skip


def train_command(overrides: Sequence[str]) -> str:
    """Returns the command line that trains the run from the current folder."""
    from kleiber.records.closing_table import command

    if Path("train.py").is_file():
        return f"python train.py {shlex.join(overrides)}"
    return command(["train", *overrides])


def lines(forecast: Row, record: Row) -> list[str]:
    """Returns the printed lines of a plan."""
    from kleiber.records.progress import format_duration
    from kleiber.studies.laws.headline import failures
    from kleiber.studies.laws.prediction import distance_text
    from kleiber.studies.laws.uncertainty import percent
    from kleiber.types.score import format_interval

    predicted, speed = forecast["predicted"], forecast["speed"]
    ends = format_interval(predicted["lo"], predicted["hi"], ".4g")
    far = distance_text(predicted["decades"], predicted["farthest"])
    return [
        f"size      {forecast['params']:,} active parameters",
        f"tokens    {forecast['tokens']:,} ({forecast['tokens'] / forecast['params']:.0f} per parameter)",
        f"rate      {forecast['lr']:g}, in batches of {forecast['batch_tokens']:,} tokens",
        f"time      {format_duration(speed['seconds'])} at {speed['tokens_per_s']:,.0f} tokens/s, {speed['source']}",
        f"loss      {predicted['value']:.4g}, {percent(predicted['level'])} prediction interval {ends}, {far}",
        *(f"caution   {text}" for text in failures(record)),
    ]
