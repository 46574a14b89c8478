"""The figure of `kleiber check mup`: size of activations against width, a panel a layer, a row a parametrisation.

The coordinate check: train small models of several widths for a few steps and compare the size of their activations.

Under a right parametrisation an entry of any activation has a size that does not depend on the width, at the start and
after steps that matter (Yang et al. 2022, arXiv:2203.03466, appendix D.1). It reads no data and writes no run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kleiber.models.transformer import Transformer
from kleiber.nn.mup import MuP, StandardParametrization
from kleiber.objectives.clm import CLM
from kleiber.optimizers.adamw import AdamW, Lion, Optimizer
from kleiber.optimizers.muon import Muon
from kleiber.training.step import accumulate, normalize_gradients
from kleiber.types.batch import Batch
from kleiber.types.model import Parametrization


def draw(rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Writes coordinates.png and coordinates.html (which needs no network) into `folder`. Flat lines are right."""
    import altair as alt
    import pandas as pd

    from kleiber.charts.theme import PALETTE, dressed

    folder.mkdir(parents=True, exist_ok=True)
    shown = pd.DataFrame(rows)
    layers = list(dict.fromkeys(shown["layer"]))
    widths = sorted(int(width) for width in shown["width"].unique())
    x = alt.X("width:Q", title="width", scale=alt.Scale(type="log", base=2, nice=False, padding=8))
    chart = (
        alt.Chart(shown)
        .mark_line(point=True, strokeWidth=1.4)
        .encode(
            x=x.axis(alt.Axis(values=widths)),
            y=alt.Y("rms:Q", title="rms of an entry", scale=alt.Scale(type="log", nice=False, padding=8)),
            color=alt.Color("step:O", scale=alt.Scale(scheme=PALETTE), title="step"),
            tooltip=["layer:N", "width:O", "step:O", alt.Tooltip("rms:Q", format=".4f")],
        )
        .properties(width=150, height=150)
        .facet(
            column=alt.Column("layer:N", sort=layers, title=None),
            row=alt.Row("parametrization:N", sort=list(dict.fromkeys(shown["parametrization"])), title=None),
        )
        .resolve_scale(y="independent")
    )
    chart = dressed(chart)
    picture, page = folder / "coordinates.png", folder / "coordinates.html"
    chart.save(picture, scale_factor=2)
    chart.save(page, inline=True, embed_options={"renderer": "svg", "actions": False})
    return [picture, page]


PARAMETRIZATIONS: dict[str, Callable[[], Parametrization]] = {"mup": MuP, "standard": StandardParametrization}
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"adamw": AdamW, "muon": Muon, "lion": Lion}
TOLERANCE = 1.2  # largest over smallest size of an activation, over the widths
PARTS = ("attention", "mlp")
VOCAB, CONTEXT, ROWS, HEAD_DIM = 64, 32, 16, 16


def coordinates(
    parametrization: str,
    optimizer: Optimizer,
    widths: Sequence[int] = (64, 128, 256, 512),
    steps: int = 8,
    seeds: int = 3,
    depth: int = 2,
    **options: Any,
) -> list[dict[str, Any]]:
    """Rows of parametrization, width, step, layer and rms: of what each layer gives, and of the logits.

    Step 0 is the model as it is built: there the logits of a tied head fall with the width, as they should.
    Averages over `seeds`; `options` go to the Transformer (mlp, attention, tied).
    """
    rows = []
    for width in widths:
        found: dict[tuple[int, str], list[float]] = {}
        for seed in range(seeds):
            torch.manual_seed(seed)
            scaled = PARAMETRIZATIONS[parametrization]()
            model = Transformer(
                VOCAB, depth, width, context=CONTEXT + 1, num_heads=width // HEAD_DIM, parametrization=scaled, **options
            )
            for step, sizes in enumerate(_train(model, optimizer, steps, seed)):
                for layer, size in sizes.items():
                    found.setdefault((step, layer), []).append(size)
        rows += [
            {"parametrization": parametrization, "width": width, "step": step, "layer": layer, "rms": sum(v) / len(v)}
            for (step, layer), v in found.items()
        ]
    return rows


def _train(model: Transformer, optimizer: Optimizer, steps: int, seed: int) -> list[dict[str, float]]:
    """Sizes before the first step and after each; every width sees the same tokens."""
    built = optimizer.build(model, model.roles(), model.parametrization.lr_scale)
    parameters = [p for group in built.param_groups for p in group["params"]]
    draw = torch.Generator().manual_seed(seed)
    held_out = text(draw)
    sizes = [measured(model, held_out)]
    for _ in range(steps):
        sums = accumulate(model, CLM(), [text(draw)], Tensor.backward)
        normalize_gradients(parameters, sums.values["tokens"].item(), 1, optimizer.clip)
        built.step()
        built.zero_grad()
        sizes.append(measured(model, held_out))
    return sizes


@torch.no_grad()
def measured(model: Transformer, batch: Batch) -> dict[str, float]:
    """RMS over all entries of what attention and MLP of each block give, and of the logits."""
    sizes: dict[str, float] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            sizes[name] = rms(tensor)

        return hook

    watched = {f"{part} {layer}": getattr(block, part) for layer, block in enumerate(model.blocks) for part in PARTS}
    handles = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    try:
        logits = model.head(model(batch).hidden)
    finally:
        for handle in handles:
            handle.remove()
    return {**sizes, "logits": rms(logits)}


def rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()


def text(draw: torch.Generator) -> Batch:
    """Random walks on the ids, steps of 1 to 4: there is something to learn, and the rate of learning is the same."""
    steps = torch.randint(1, 5, (ROWS, CONTEXT + 1), generator=draw)
    start = torch.randint(VOCAB, (ROWS, 1), generator=draw)
    return Batch((start + steps.cumsum(1)) % VOCAB)


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Largest over smallest RMS over the widths by layer, after the last step."""
    last = max(row["step"] for row in rows)
    sizes: dict[str, list[float]] = {}
    for row in rows:
        if row["step"] == last:
            sizes.setdefault(row["layer"], []).append(row["rms"])
    return {layer: max(values) / max(min(values), 1e-12) for layer, values in sizes.items()}


def check_mup(widths: Sequence[int], steps: int, seeds: int, optimizer: str, lr: float, folder: Path) -> bool:
    """Prints the ratio of each layer for muP and, beside it, the standard parametrisation; whether muP's are all small.

    Draws the sizes into `folder` where the extra `report` is installed.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"--optimizer {optimizer}: one of {', '.join(OPTIMIZERS)}")
    if len(set(widths)) < 2 or any(width < HEAD_DIM or width % HEAD_DIM for width in widths):
        raise ValueError(f"--widths {list(widths)}: give at least two different multiples of {HEAD_DIM}")
    rows = [
        row
        for name in PARAMETRIZATIONS
        for row in coordinates(name, OPTIMIZERS[optimizer](lr=lr), sorted(widths), steps, seeds)
    ]
    found = {name: ratios([row for row in rows if row["parametrization"] == name]) for name in PARAMETRIZATIONS}
    print(f"largest over smallest rms over widths {', '.join(map(str, sorted(widths)))} after {steps} steps")
    for name, layers in found.items():
        print(f"  {name:<10}" + "".join(f"{layer} {ratio:.2f}   " for layer, ratio in layers.items()))
    passed = max(found["mup"].values()) <= TOLERANCE
    worst = max(found["mup"], key=lambda layer: found["mup"][layer])
    print(f"{'pass' if passed else 'FAIL'}: muP's worst is {worst}, {found['mup'][worst]:.2f} (limit {TOLERANCE})")
    try:
        print("figure: " + ", ".join(map(str, draw(rows, folder))))
    except ImportError as error:
        print(f"no figure: {error.name} is not installed (pip install 'kleiber[report]')")
    return passed
