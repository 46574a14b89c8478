"""What a comparison compares: what differs between its arms, and the recipe, data, command and cost that they share."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from kleiber.config.nested import flatten
from kleiber.records.catalog import Run
from kleiber.records.progress import format_duration
from kleiber.studies.claims import Claim
from kleiber.studies.compare.arms import Arm, ArmOf
from kleiber.studies.compare.differences import in_sentence
from kleiber.studies.compare.tables import Pairs
from kleiber.studies.decision import QUANTITIES
from kleiber.types import Config, Json

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
    for what, keys in RECIPE.items():
        shared = next((text for text in (common(values, key) for key in keys) if text), "")
        rows.append({"what": what, "value": shared or "differs between arms"})
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


def question_of(claims: Sequence[Claim], measure: str, labels: Mapping[str, str], pairs: Pairs) -> str:
    """Returns the question that the claims of a comparison answer."""
    plain = {against for _, against in pairs}
    changed = [*dict.fromkeys(in_sentence(labels.get(arm, arm)) for arm, _ in pairs)]
    held = dict.fromkeys(claim.equal for claim in claims if claim.equal is not None)
    where = f"in {measure}" + (f", at equal {listed_words([QUANTITIES[name].label for name in held])}" if held else "")
    if len(plain) != 1:
        return f"How do the arms compare {where}?"
    (base,) = (in_sentence(labels.get(name, name)) for name in plain)
    names = listed_words(changed) if len(changed) <= MOST_NAMES else f"{len(changed)} arms"
    return f"How {'do' if len(changed) > 1 else 'does'} {names} compare with {base} {where}?"


def listed_words(words: Sequence[str]) -> str:
    """Returns words as a sentence lists them: `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])
