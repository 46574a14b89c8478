"""The options of `kleiber fit` and `kleiber predict`, and how their values are parsed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

ParamsColumn = Annotated[
    str | None, typer.Option(metavar="COL", help="column of model parameters; same as --map N=COL")
]
DataColumn = Annotated[str | None, typer.Option(metavar="COL", help="column of training tokens; same as --map D=COL")]
LossColumn = Annotated[str | None, typer.Option(metavar="COL", help="column of the loss; same as --map L=COL")]
ComputeColumn = Annotated[str | None, typer.Option(metavar="COL", help="column of training FLOPs; same as --map C=COL")]
LossFn = Annotated[str | None, typer.Option(help="huber, lad or squared; default: as in the law's publication")]
Space = Annotated[
    str | None,
    typer.Option(help="scale of the residuals: log, linear or log10; default: as in the law's publication"),
]
Delta = Annotated[
    float | None,
    typer.Option(help="Huber delta: larger residuals count linearly; on the scale of --space; default 0.001"),
]
Cluster = Annotated[
    str | None,
    typer.Option(metavar="COL", help="column that names rows with shared noise; default for run folders: trunk"),
]
Fixed = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="fix a parameter at a value; may be repeated")
]
At = Annotated[
    str | None,
    typer.Option(metavar="NAME=VALUE,...", help="also report the objective at these values of all parameters"),
]
Sigma = Annotated[
    str | None, typer.Option(metavar="COL", help="column of the standard error of the loss, in the units of the loss")
]
Cuts = Annotated[
    str | None,
    typer.Option(
        metavar="C,C,...", help="compute cuts of the backtests (sizes N if compute is unknown); default: three cuts"
    ),
]
Exclude = Annotated[
    str, typer.Option(help="none, or suspects: exclude rows that look diverged, badly tuned or unfinished")
]
Bootstrap = Annotated[
    int, typer.Option(min=0, help="number of bootstrap resamples: 0 for none, or at least 2 / (1 - level)")
]
TrustedLaw = Annotated[
    str | None,
    typer.Option(metavar="FILE.py:FUNCTION", help="run this function, if LAWS.json was fitted with it"),
]
MaxDecades = Annotated[
    float, typer.Option(min=0, help="refuse predictions more than this many factors of 10 outside the fitted rows")
]
Where = Annotated[list[str] | None, typer.Option(help='use only rows with "loss < 4 and N >= 1e8"; may be repeated')]
PredictAt = Annotated[
    list[str] | None, typer.Option(metavar="N=..,D=..", help="also predict the loss at this N and D; may be repeated")
]
Rank = Annotated[
    bool,
    typer.Option("--rank", help="rank several laws by their error at the largest compute, left out of the fit"),
]
JsonFile = Annotated[Path | None, typer.Option(metavar="OUT.json", help="write the fitted law to this file")]
HtmlFile = Annotated[Path | None, typer.Option(metavar="OUT.html", help="write an HTML page with figures to this file")]


def parse_values(items: Sequence[str], option: str) -> dict[str, float]:
    """Parses items such as `E=1.8` to numbers by name.

    Raises ValueError for a malformed item, and for a name with two different values.
    """
    from kleiber.studies.laws.filters import number

    values: dict[str, float] = {}
    for item in items:
        name, _, text = item.partition("=")
        value = number(text)
        if value is None or not name.strip():
            raise ValueError(f"{option} {item!r} must have the form NAME=NUMBER, such as E=1.8")
        if values.get(name.strip(), value) != value:
            raise ValueError(
                f"{option} {item!r} contradicts {name.strip()}={values[name.strip()]:g}; remove one of them"
            )
        values[name.strip()] = value
    return values


def parse_point(text: str) -> dict[str, float]:
    """Parses a point such as `N=7B,D=140B` to numbers by name. Raises ValueError for a malformed part."""
    from kleiber.studies.laws.filters import number

    point = {}
    for item in filter(None, text.replace(" ", ",").split(",")):
        name, equals, value = item.partition("=")
        read = number(value) if equals else None
        if read is None:
            raise ValueError(f"predict: {item!r} must have the form NAME=NUMBER, such as N=1e9 or D=20B")
        if point.get(name.strip(), read) != read:
            raise ValueError(
                f"predict: {item!r} contradicts {name.strip()}={point[name.strip()]:g}; remove one of them"
            )
        point[name.strip()] = read
    if not point:
        raise ValueError("predict: the point to predict is missing; add it, such as N=1e9 D=20e9")
    return point


def parse_numbers(text: str, option: str) -> list[float]:
    """Parses numbers that are separated by commas. Raises ValueError, which names `option`, for other text."""
    from kleiber.studies.laws.filters import number

    read = [number(item) for item in text.split(",")]
    if any(value is None for value in read):
        raise ValueError(f"{option} {text!r} must be numbers separated by commas, such as 1e20,1e21")
    return [value for value in read if value is not None]
