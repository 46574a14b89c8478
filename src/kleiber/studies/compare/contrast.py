"""Claims about fine-tuned runs with their estimates: replay, learning rates, averages, trends.

A claim without the runs that test it is left out. Differences are within seeds, whose runs share a base. `trends` tests
how forgetting F changes from one end of an input to the other, with the noise of seeds pooled over all cells of a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from kleiber.inference.contrasts import Cell, Groups
from kleiber.studies.claims import RATE, Claim, Question
from kleiber.studies.compare.noise import Noise, trained
from kleiber.studies.compare.rows import PLAIN, Rows
from kleiber.studies.decision import Estimate, estimate_around
from kleiber.types import Row
from kleiber.types.score import format_interval

PAIRED = ["seed", "beside"]  # one base, and fine-tuning of one length
NATS = "nats"
BASES = "base models"
POOLED = "Student's t within seeds, noise pooled over settings"
LEARNED = 0.02  # the loss of target quality, relative, that replay is said to stay below


def format_level(estimate: Estimate) -> str:
    """Returns a mean that is no difference as text, such as `1.6333 [1.6000, 1.6666]`."""
    if estimate.lo is None or estimate.hi is None:
        return f"{estimate.value:.4f} (no interval)"
    return f"{estimate.value:.4f} {format_interval(estimate.lo, estimate.hi, '.4f')}"


def questions_on_forgetting(rows: Rows) -> list[Question]:
    """Returns the claims on replay, learning rates and averages that these runs can test."""
    rows = rows.assign(beside=beside(rows))
    cells = {measure: setting_cells(rows, measure) for measure in ("F", "target")}
    return [
        *replay_is_monotone(rows, cells["F"]),
        *replay_is_cheap(rows, cells["target"]),
        *fast_forgets(rows, cells["F"]),
        *averaging(rows),
    ]


def setting_cells(rows: Rows, measure: str) -> dict[Hashable, list[Cell]]:
    """Returns a measure of all trained settings by seed, as groups whose noise is alike, by method, share and rate."""
    groups: dict[Hashable, list[Cell]] = {}
    for _, part in trained(rows).groupby(["method", "setting", "lr", "steps"], dropna=False):
        first = part.iloc[0]
        cell = part.groupby("seed")[measure].mean().dropna().to_dict()
        groups.setdefault(group_name(first["method"], first["replayed"], first["lr"]), []).append(cell)
    return groups


def group_name(method: str, share: float, lr: float) -> tuple[str, float, float]:
    """Returns the name of a group of `setting_cells`."""
    return method, float(share), float(lr)


def replay_name(share: float, lr: float) -> tuple[str, float, float]:
    """Returns the name of the group of replay or, without a share, of plain fine-tuning."""
    return group_name("replay" if share else PLAIN, share, lr)


def contrast(
    table: Rows, of: float, against: float, claim: Claim, text: str, groups: Groups, names: Sequence[Hashable]
) -> Question | None:
    """Returns a claim on the mean of a column minus another over the rows that have both; None without such rows.

    groups, names  of `setting_cells`, and those of the two sides
    """
    gaps = (table[of] - table[against]).dropna().groupby("seed").mean()
    return question(claim, text, gaps.tolist(), groups, names) if len(gaps) else None


def question(
    claim: Claim, text: str, values: Sequence[float], groups: Groups, names: Sequence[Hashable] = (), unit: str = NATS
) -> Question:
    """Returns a claim whose sides are runs from the same bases, with the difference of each base."""
    return Question(
        claim=claim, text=text, values=values, unit=unit, better="lower", paired=True, samples=BASES, groups=groups,
        weights=dict(zip(names, (1.0, -1.0), strict=True)) if names else None,
    )  # fmt: skip


def by_rate(rows: Rows, measure: str) -> dict[float, Rows]:
    """A measure of plain fine-tuning and of replay of the earlier tasks' text, pairs x replayed share, by rate."""
    parts: Rows = real_replay(rows).groupby("lr")
    return {lr: part.pivot_table(index=PAIRED, columns="replayed", values=measure) for lr, part in parts}


def real_replay(rows: Rows) -> Rows:
    """The rows of plain fine-tuning, and of replay of the text of the earlier tasks with the largest memory."""
    replay, kept = rows["method"] == "replay", rows["kept"]
    return rows[(rows["method"] == PLAIN) | (replay & (kept == kept[replay].max()))]


def beside(rows: Rows, by: Sequence[str] = ()) -> list[float]:
    """For each row the steps of the plain runs, equal in `by`, that it is compared with; nan without plain runs.

    These have as many steps or, where replay was added to the budget (design.equal=target), as much new text.
    """
    keys = list(zip(*(rows[name] for name in by), strict=True)) or [()] * len(rows)
    plain: dict[tuple[float, ...], set[float]] = {}
    for key, steps, method in zip(keys, rows["steps"], rows["method"], strict=True):
        plain.setdefault(key, set()).update({steps} if method == PLAIN else ())
    nearest = []
    for key, steps, share in zip(keys, rows["steps"], rows["replayed"], strict=True):
        near = min(plain[key], key=lambda other, new=steps * (1 - share): abs(other - new), default=float("nan"))
        nearest.append(float(steps if steps in plain[key] else near))
    return nearest


def replay_is_monotone(rows: Rows, groups: Groups) -> list[Question]:
    """F falls with each step of the replayed share, at each learning rate: a claim for each step."""
    asked = []
    for lr, table in by_rate(rows, "F").items():
        for less, larger in pairwise(sorted(table)):
            of, against = {"replayed": larger, "lr": lr}, {"replayed": less}
            shares = f"with a replayed share of {larger:g} than with {less:g}"
            text = f"forgetting F is lower {shares}, at learning rate {lr:g}"
            claim = Claim(of=of, against=against, measure="F", equal=RATE)
            names = [replay_name(share, lr) for share in (larger, less)]
            asked.append(contrast(table, larger, less, claim, text, groups, names))
    return [entry for entry in asked if entry is not None]


def replay_is_cheap(rows: Rows, groups: Groups) -> list[Question]:
    """5% replay costs less than 2% of the target loss, where plain fine-tuning learns best."""
    tables = {lr: table[[0.0, 0.05]].dropna() for lr, table in by_rate(rows, "target").items() if {0, 0.05} <= {*table}}
    tables = {lr: table for lr, table in tables.items() if len(table)}
    if not tables:
        return []
    lr, table = min(tables.items(), key=lambda item: item[1][0.0].mean())
    base = float(table[0.0].mean())
    costs = (table[0.05] - table[0.0]).groupby("seed").mean() / base
    relative = {
        name: [{seed: value / base for seed, value in cell.items()} for cell in cells] for name, cells in groups.items()
    }
    claim = Claim(
        of={"replayed": 0.05},
        against={"replayed": 0.0},
        measure="target",
        equal=RATE,
        direction="not_higher",
        margin=LEARNED,
    )
    text = f"5% replay costs less than {LEARNED:.0%} of the target loss at equal {equal_in(rows)}"
    names = [replay_name(share, lr) for share in (0.05, 0.0)]
    return [question(claim, text, costs.tolist(), relative, names, "of the target loss")]


def equal_in(rows: Rows) -> str:
    """What is equal between runs with and without replay: tokens, or new tokens (design.equal=target)."""
    real = real_replay(rows)
    plain, replay = (set(part["tokens"]) for part in (real[real["replayed"] == 0], real[real["replayed"] > 0]))
    return "tokens" if plain & replay else "new tokens"


def fast_forgets(rows: Rows, groups: Groups) -> list[Question]:
    """Plain fine-tuning forgets more at its highest learning rate than at its lowest."""
    plain = rows[rows["method"] == PLAIN].pivot_table(index=PAIRED, columns="lr", values="F")
    if len(plain.columns) < 2:
        return []
    low, high = min(plain), max(plain)
    claim = Claim(of={"method": PLAIN, "lr": high}, against={"lr": low}, measure="F", direction="higher")
    text = f"forgetting F of plain fine-tuning is higher at learning rate {high:g} than at {low:g}"
    names = [replay_name(0.0, lr) for lr in (high, low)]
    rise = contrast(plain, high, low, claim, text, groups, names)
    return [] if rise is None else [rise]


def averaging(rows: Rows) -> list[Question]:
    """Averaged weights have a lower loss than the mean of the losses, for forgetting and for the target.

    The difference of a run is the loss half-way minus the mean loss of start and end; those of a seed are averaged.
    """
    line = rows[rows["method"] == "wise"]
    alpha = line["setting"].str.extract(r"a=([0-9.]+)$")[0].astype(float)
    keyed = line.assign(alpha=alpha).pivot_table(index=["seed", "run"], columns="alpha", values=["F", "target"])
    wanted = {(name, share) for name in ("F", "target") for share in (0.0, 0.5, 1.0)}
    if not len(line) or not wanted <= set(keyed.columns):
        return []
    asked = []
    for name, measure in (("F", "forgetting F"), ("target", "the target loss")):
        change = keyed[name, 0.5] - (keyed[name, 0.0] + keyed[name, 1.0]) / 2
        by_seed = change.groupby("seed").mean().dropna().tolist()
        claim = Claim(of={"alpha": 0.5}, against={"alpha": "mean of 0 and 1"}, measure=name)
        middle = "with weights halfway between those before and after fine-tuning"
        text = f"{middle}, {measure} is lower than its mean at the two ends"
        asked.append(question(claim, text, by_seed, {}))
    return asked


BASE = ["N", "M"]  # cells of one size and ratio go on from the same bases, so they are no independent samples
TRENDS = (
    ("beside", "higher", "forgetting F is higher after more new text"),
    ("M", "higher", "forgetting F is higher after more pre-training tokens per parameter"),
    ("N", "lower", "forgetting F is lower for larger models"),
    ("p", "lower", "forgetting F is lower with a larger replayed share"),
)


def trends(rows: Rows, noise: Noise) -> list[Question]:
    """Returns claims on the change of F from the least to the largest value of each varied input.

    rows  the cells of a grid: N, M, p, n (seeds), F (mean over seeds), and `beside`, the steps of the plain cell
    """
    asked = []
    for column, direction, text in TRENDS:
        ends = list(pairs(rows, column))
        if not ends:
            continue
        rises = [high["F"] - low["F"] for low, high in ends]
        asked.append(trend(column, direction, text, rises, ends, partial(noise.half_width, terms=terms(ends))))
        if column == "beside":
            longer = ends[0][1][column] / ends[0][0][column]
            slower = [high["F"] - longer * low["F"] for low, high in ends]
            half = partial(noise.half_width, terms=terms(ends) * (1 + longer**2) / 2)
            text = "forgetting F grows more slowly than new text does"
            asked.append(trend(column, "lower", text, slower, ends, half))
    return asked


def pairs(rows: Rows, column: str) -> Iterator[tuple[Row, Row]]:
    """Pairs of cells at the least and at the largest value of an input that are equal in all other inputs."""
    kept = rows if column == "p" else rows[rows["p"] == 0]
    low, high = kept[column].min(), kept[column].max()
    others = [name for name in ("N", "M", "beside", "p") if name != column]
    for _, part in kept.groupby(others):
        ends = [part[part[column] == value] for value in (low, high)]
        if low < high and all(map(len, ends)):
            yield ends[0].iloc[0], ends[1].iloc[0]


def terms(ends: list[tuple[Row, Row]]) -> float:
    """Variance of the mean difference in units of that of a run, with as many independent differences as bases."""
    bases = min(len({tuple(cell[BASE]) for cell in side}) for side in zip(*ends, strict=True))
    return float(np.mean([1 / low["n"] + 1 / high["n"] for low, high in ends])) / bases


def trend(
    column: str, direction: str, text: str, values: list[float], ends: list[tuple[Row, Row]],
    half: Callable[[float], float],
) -> Question:  # fmt: skip
    """Returns the claim on the mean of `values` over the cells, with their range in its text."""
    low, high = ends[0][0][column], ends[0][1][column]
    span = f"{min(values):+.4f} to {max(values):+.4f} over {len(values)} cells"
    unit = {"beside": " steps", "M": " tokens per parameter", "N": " parameters", "p": " of the tokens"}[column]
    seeds, mean = min(int(cell["n"]) for pair in ends for cell in pair), float(np.mean(values))
    claim = Claim(of={column: float(high)}, against={column: float(low)}, measure="F", direction=direction)
    return Question(
        claim=claim, text=f"{text}, from {low:g} to {high:g}{unit} ({span})", unit=NATS, better="lower", method=POOLED,
        at=lambda level: estimate_around(mean, half(level), seeds, NATS),
    )  # fmt: skip
