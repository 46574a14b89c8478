"""`kleiber check mup`: the coordinate check, which tests whether activations keep their size as a model gets wider.

It trains small models of several widths for a few steps and compares the size of their activations. Under a correct
parametrization, the size of an activation does not depend on the width, neither at initialization nor after steps that
change the weights (Yang et al. 2022, arXiv:2203.03466, appendix D.1). The check reads no data and writes no run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor, nn

from kleiber.evals.streams import hooked
from kleiber.models.transformer import Transformer
from kleiber.nn.mup import MuP, StandardParametrization
from kleiber.objectives.clm import CLM
from kleiber.optimizers.adamw import AdamW, Lion, Optimizer
from kleiber.optimizers.muon import Muon
from kleiber.optimizers.sgd import SGD
from kleiber.records.files import write_bytes, write_text
from kleiber.records.progress import Activity, activity
from kleiber.records.regular_files import make_folder
from kleiber.records.terminal import print_line
from kleiber.training.step import accumulate, normalize_gradients
from kleiber.types.batch import Batch
from kleiber.types.model import Parametrization

PARAMETRIZATIONS: dict[str, Callable[[], Parametrization]] = {"mup": MuP, "standard": StandardParametrization}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": AdamW, "muon": Muon, "lion": Lion, "sgd": SGD}
TOLERANCE = 1.2  # limit of the largest over the smallest size of an activation among all widths
PARTS = ("attention", "mlp")
VOCAB, CONTEXT, ROWS, HEAD_DIM = 64, 32, 16, 16


class ActivationSize(TypedDict):
    """Root mean square of the activations of one layer, after `step` optimizer steps of a model of this width."""

    parametrization: str
    width: int
    step: int
    layer: str
    rms: float


def draw_figure(rows: Sequence[ActivationSize], folder: Path) -> list[Path]:
    """Draws the sizes against width, a panel per layer and parametrization. Lines that stay flat pass the check.

    Writes coordinates.png and coordinates.html (which needs no network) into `folder` and returns their paths.
    """
    import altair as alt
    import pandas as pd

    from kleiber.charts.page import render_page
    from kleiber.charts.pictures import svg_to_png, to_svg
    from kleiber.charts.theme import PALETTE, apply_theme

    make_folder(folder)
    table = pd.DataFrame(rows)
    layers = list(dict.fromkeys(table["layer"]))
    widths = sorted(int(width) for width in table["width"].unique())
    x = alt.X("width:Q", title="Width (channels)", scale=alt.Scale(type="log", base=2, nice=False, padding=8))
    chart = (
        alt.Chart(table)
        .mark_line(point=True, strokeWidth=1.4)
        .encode(
            x=x.axis(alt.Axis(values=widths)),
            y=alt.Y("rms:Q", title="Activation RMS", scale=alt.Scale(type="log", nice=False, padding=8)),
            color=alt.Color("step:O", scale=alt.Scale(scheme=PALETTE), title="Optimizer step"),
            tooltip=["layer:N", "width:O", "step:O", alt.Tooltip("rms:Q", format=".4f")],
        )
        .properties(width=150, height=150)
        .facet(
            column=alt.Column("layer:N", sort=layers, title=None),
            row=alt.Row("parametrization:N", sort=list(dict.fromkeys(table["parametrization"])), title=None),
        )
        .resolve_scale(y="independent")
    )
    chart = apply_theme(chart)
    picture, html = folder / "coordinates.png", folder / "coordinates.html"
    write_bytes(picture, svg_to_png(to_svg(chart)))
    write_text(html, render_page("Coordinate check: activation size vs width", {"coordinates": chart}))
    return [picture, html]


def activation_sizes(
    parametrization: str,
    optimizer: Optimizer,
    widths: Sequence[int] = (64, 128, 256, 512),
    steps: int = 8,
    seeds: int = 3,
    depth: int = 2,
) -> list[ActivationSize]:
    """Trains a model of each width and returns the activation sizes of its layers and logits, averaged over seeds.

    Step 0 is the untrained model. There the logits of a tied output layer shrink with the width, as they should.

    parametrization  a key of PARAMETRIZATIONS
    """
    rows: list[ActivationSize] = []
    for width in widths:
        sizes: dict[tuple[int, str], list[float]] = {}
        with activity(f"training models of width {width} ({parametrization})", seeds * steps, "steps") as work:
            for seed in range(seeds):
                torch.manual_seed(seed)
                scaled = PARAMETRIZATIONS[parametrization]()
                heads = width // HEAD_DIM
                model = Transformer(VOCAB, depth, width, context=CONTEXT + 1, num_heads=heads, parametrization=scaled)
                for step, by_layer in enumerate(_train(model, optimizer, steps, seed, work)):
                    for layer, size in by_layer.items():
                        sizes.setdefault((step, layer), []).append(size)
        for (step, layer), values in sizes.items():
            mean = sum(values) / len(values)
            rows.append(ActivationSize(parametrization=parametrization, width=width, step=step, layer=layer, rms=mean))
    return rows


def _train(model: Transformer, optimizer: Optimizer, steps: int, seed: int, work: Activity) -> list[dict[str, float]]:
    """Trains for `steps` steps; returns the sizes by layer before the first step and after each step."""
    built = optimizer.build(model, model.roles(), model.parametrization.lr_scale)
    parameters = [p for group in built.param_groups for p in group["params"]]
    generator = torch.Generator().manual_seed(seed)
    held_out = random_walks(generator)
    sizes = [activation_rms(model, held_out)]
    for _ in range(steps):
        sums = accumulate(model, CLM(), [random_walks(generator)], Tensor.backward)
        normalize_gradients(parameters, sums.values["tokens"].item(), 1, optimizer.clip)
        built.step()
        built.zero_grad()
        sizes.append(activation_rms(model, held_out))
        work.done += 1
    return sizes


@torch.no_grad()
def activation_rms(model: Transformer, batch: Batch) -> dict[str, float]:
    """Returns the root mean square of the outputs of attention and MLP in each block, and of the logits."""
    sizes: dict[str, float] = {}

    def recorder(name: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            sizes[name] = rms(output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [
        block.get_submodule(part).register_forward_hook(recorder(f"{part} {layer}"))
        for layer, block in enumerate(model.blocks)
        for part in PARTS
    ]
    with hooked(handles):
        logits = model.head(model(batch).hidden)
    return {**sizes, "logits": rms(logits)}


def rms(tensor: Tensor) -> float:
    """Returns the root mean square of all entries."""
    return tensor.square().mean().sqrt().item()


def random_walks(generator: torch.Generator) -> Batch:
    """Draws rows of token ids that grow by 1 to 4 (modulo VOCAB) at each position, which a model can learn quickly."""
    steps = torch.randint(1, 5, (ROWS, CONTEXT + 1), generator=generator)
    start = torch.randint(VOCAB, (ROWS, 1), generator=generator)
    return Batch((start + steps.cumsum(1)) % VOCAB)


def width_ratios(rows: Sequence[ActivationSize]) -> dict[str, float]:
    """Returns the largest over the smallest size among all widths, by layer, after the last step."""
    last = max(row["step"] for row in rows)
    sizes: dict[str, list[float]] = {}
    for row in rows:
        if row["step"] == last:
            sizes.setdefault(row["layer"], []).append(row["rms"])
    return {layer: max(values) / max(min(values), 1e-12) for layer, values in sizes.items()}


def check_mup(widths: Sequence[int], steps: int, seeds: int, optimizer: str, lr: float, folder: Path) -> bool:
    """Runs the coordinate check, prints its result, and returns whether muP passes.

    Compares muP with the standard parametrization. Draws a figure into `folder` if the extra `report` is installed.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"--optimizer {optimizer} must be one of {', '.join(OPTIMIZERS)}")
    if len(set(widths)) < 2 or any(width < HEAD_DIM or width % HEAD_DIM for width in widths):
        raise ValueError(f"--widths {list(widths)} must be at least two different multiples of {HEAD_DIM}")
    with activity("checking muP"):
        sizes = {
            name: activation_sizes(name, OPTIMIZERS[optimizer](lr=lr), sorted(widths), steps, seeds)
            for name in PARAMETRIZATIONS
        }
    ratios = {name: width_ratios(rows) for name, rows in sizes.items()}
    print_line(
        f"activation RMS after {steps} steps, largest / smallest among widths {', '.join(map(str, sorted(widths)))}:"
    )
    for name, by_layer in ratios.items():
        print_line(f"  {name:<10}" + "".join(f"{layer} {ratio:.2f}   " for layer, ratio in by_layer.items()))
    worst = max(ratios["mup"], key=lambda layer: ratios["mup"][layer])
    passed = ratios["mup"][worst] <= TOLERANCE
    print_line(
        f"{'pass' if passed else 'FAIL'}: the largest ratio of muP is {ratios['mup'][worst]:.2f} ({worst}); "
        f"the limit is {TOLERANCE}"
    )
    try:
        with activity("drawing the figure"):
            files = draw_figure([row for rows in sizes.values() for row in rows], folder)
        print_line(f"figure: {', '.join(map(str, files))}")
    except ImportError as error:
        print_line(f"no figure: {error.name} is not installed (pip install 'kleiber[report]')")
    return passed
