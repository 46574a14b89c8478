"""What a comparison compares: what differs between its arms, and the recipe, data, command and cost that they share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kleiber.config.nested import flatten
from kleiber.inference.contrasts import MODERATED, SEPARATE
from kleiber.records.catalog import Run
from kleiber.records.progress import format_duration
from kleiber.studies.claims import Claim
from kleiber.studies.compare.arms import Arm, ArmOf, measured
from kleiber.studies.compare.costs import AT_ONE, LATENCY_METHODS
from kleiber.studies.compare.differences import Ladders, in_sentence
from kleiber.studies.compare.tables import Pairs
from kleiber.studies.decision import QUANTITIES
from kleiber.types import Config, Json, Row

if TYPE_CHECKING:
    from kleiber.studies.compare.study import Compare

MOST_NAMES = 6  # arms that a question names
# Keys of a config that describe the recipe of all arms, by what a reader calls them.
RECIPE = {
    "model": ("model._target_",), "width": ("model.width",), "layers": ("model.depth",),
    "context": ("data.context",), "data": ("data.name", "data.path", "data._target_"),
    "tokenizer": ("data.tokenizer",), "tokens of a batch": ("batch.tokens",), "optimizer": ("optimizer._target_",),
    "schedule": ("schedule._target_",), "weight decay": ("optimizer.weight_decay",),
}  # fmt: skip


def arms_table(runs: Sequence[Run], arm_of: ArmOf, arms: Mapping[str, Arm], labels: Mapping[str, str]) -> list[Json]:
    """Returns what each arm changes in the shared recipe, with its parameters, learning rates and seeds.

    arms    by name, at the budget that is compared
    labels  what people call the arms
    """
    table = []
    for name, arm in arms.items():
        part = [run for run in runs if arm_of(run) == name]
        row = {"arm": labels.get(name, name), "name": name, "changes": changes(name, part) or "nothing"}
        rates = ", ".join(f"{rate:g}" for rate in sorted(arm.values_by_rate))
        params = arm.facts.get("params")
        row |= {
            "parameters": None if params is None else round(params),
            "learning rates": rates,
            "seeds": len(arm.best_values),
        }
        table.append(row)
    return table


def changes(name: str, runs: Sequence[Run]) -> str:
    """Returns what the design says that an arm sets; "" for an arm of no design."""
    designs = [(run.config.get("design") or {}).get("arms") or {} for run in runs]
    planned = next((arms[name] for arms in designs if arms.get(name) is not None), None)
    if isinstance(planned, Mapping):
        return ", ".join(f"{key}={value}" for key, value in planned.items() if key != "study.arm")
    return ""


def recipe_table(runs: Sequence[Run], arm_of: ArmOf, arms: Mapping[str, Arm]) -> list[Json]:
    """Returns what the runs of all arms share: model, data, optimizer, the command that trains them, and their cost."""
    chosen = [run for run in runs if arm_of(run) is not None]
    values = [flatten(run.config) for run in chosen]
    rows = []
    for part, keys in RECIPE.items():
        shared = next((text for text in (common(values, key) for key in keys) if text), "")
        rows.append({"what": part, "value": shared or "differs between arms"})
    rows = [row for row in rows if row["value"] != "differs between arms" or row["what"] in ("model", "data")]
    tokens = sorted({f"{arm.facts['tokens']:,.0f}" for arm in arms.values()})
    rows.append({"what": "training tokens compared", "value": " or ".join(tokens)})
    seconds = sum(run.summary.get("seconds") or 0.0 for run in chosen)
    rows.append({"what": "cost", "value": f"{len(chosen)} runs, {format_duration(seconds)} of training"})
    if lines := shared_overrides(chosen):
        rows.append({"what": "command", "value": f"kleiber train {shlex.join(lines)}"})
    return rows


def common(values: Sequence[Config], key: str) -> str:
    """Returns the value that all configs have of a key, of a class its name; "" where they differ or have none."""
    distinct = {str(config.get(key)) for config in values}
    (text,) = distinct if len(distinct) == 1 else ("None",)
    return "" if text == "None" else text.rpartition(".")[2] if key.endswith("_target_") else text


def shared_overrides(runs: Sequence[Run]) -> list[str]:
    """Returns the overrides that all runs have, which is what their command line had in common."""
    every = [run.overrides for run in runs]
    first = every[0] if every else []
    return [line for line in first if line.startswith("study=") or all(line in lines for lines in every)]


def question_of(claims: Sequence[Claim], ladders: Ladders, labels: Mapping[str, str], pairs: Pairs) -> str:
    """Returns the question that the claims of a comparison answer."""
    plain = dict.fromkeys(against for _, against in pairs)
    changed = [*dict.fromkeys(in_sentence(labels.get(arm, arm)) for arm, _ in pairs)]
    held = dict.fromkeys(claim.equal for claim in claims if claim.equal is not None)
    measures = dict.fromkeys(measured(ladders, claim.measure).label for claim in claims)
    where = f"in {listed_words([*measures])}"
    where += f", at equal {listed_words([QUANTITIES[name].label for name in held])}" if held else ""
    bases = [in_sentence(labels.get(name, name)) for name in plain]
    if len(bases) != 1:
        arms = [*dict.fromkeys([*changed, *bases])]
        return f"How do {listed_words(arms) if len(arms) <= MOST_NAMES else f'{len(arms)} arms'} compare {where}?"
    names = listed_words(changed) if len(changed) <= MOST_NAMES else f"{len(changed)} arms"
    return f"How does {'each of ' * (len(changed) > 1)}{names} compare with {bases[0]} {where}?"


def listed_words(words: Sequence[str]) -> str:
    """Returns words as a sentence lists them: `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])


METHODS = (
    "Every arm was trained at every one of its learning rates with every seed; runs with the same seed see the same "
    "samples in the same order. Arms enter at the vertices of parabolas in the logarithm of the rate, through the "
    "means of all rates, or all of them at the rate of best mean where a parabola does not fit one of them or has no "
    "vertex between the rates; the standard error is that of one rate. An arm counts as tuned with at least five "
    "rates and three seeds, if its best rate is neither the least nor the largest, and if all arms have as many rates"
    " with the same spacing. {variance} Intervals of the claims together have a confidence of {level} over {claims} "
    "claims and {looks} looks and are drawn in the figure of differences; those of the tables below have it each. "
    "Where arms do not meet in what is held equal, the loss of one is interpolated between two of its budgets, on "
    "logarithmic scales. Inference memory is that of the weights and of the keys and values of one context, in fp32."
)

VARIANCE = {
    MODERATED: (
        "The variance over seeds of an arm is that of its rates within one step of the best one, shrunk to that of the "
        "other arms as far as these agree (Smyth 2004, doi:10.2202/1544-6115.1027). Differences are paired by seed "
        "where the seed explains part of the variance (F test). Claims have joint intervals, by the multivariate t of "
        "their contrasts."
    ),
    SEPARATE: "Differences are paired by seed, with Student's intervals and Bonferroni's level for the claims.",
}


def methods(study: Compare, claims: int, tables: Mapping[str, Sequence[Row]]) -> str:
    """The methods of a comparison with so many claims, those of the tables that not every one has included."""
    sentences = {
        "Trends of differences": " A trend over tokens is the slope of the difference on the binary logarithm of the "
        "tokens; one over sizes is the difference of the differences of two pairs of arms, seed by seed.",
        "Effective parameter multiplier": " The effective parameter multiplier is the size at which a line through the "
        "values of arms of one kind over log N (active parameters outside the embeddings) meets that of the arm, "
        "over the size of the arm (after Clark et al. 2022, arXiv:2202.01169).",
    }
    has_latency = any(name in row for row in tables["Arms"] for name in AT_ONE)
    texts = [text for title, text in sentences.items() if tables[title]]
    variance, level = VARIANCE[study.variance], f"{study.level:.0%}"
    shared = METHODS.format(level=level, claims=claims, looks=study.looks, variance=variance)
    return "".join([shared, *texts, *([LATENCY_METHODS] if has_latency else [])])
