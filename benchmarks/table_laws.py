"""Do the intervals of the laws of mixtures and task scores cover? And what do the laws predict of published tables?

    python benchmarks/table_laws.py coverage --tables 200 --out benchmarks/results/table_laws.json
    python benchmarks/table_laws.py published --folder ../shared/laws --out benchmarks/results/table_laws.json
    python benchmarks/table_laws.py own --folder multirun/results/mixture --out benchmarks/results/table_laws.json

`coverage` simulates tables of a known law and counts how often nominal 90% intervals contain the truth: of the mixture
that was chosen (its loss, its gain over the proportional mixture), of a new run inside the fitted range, and of the
score that the law expects one decade of compute outside. `published` fits the small models of RegMix, the OLMo ladder
and Gadre et al. and compares with larger ones, by task and route. `own` fits the runs of study=mixture, and predicts
the held-out mixtures and those of study=mixture_arms. Each part replaces its own entry of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kleiber.studies.laws.table_laws import Settings, compare, rank_correlation, select
from kleiber.studies.laws.uncertainty import interval
from kleiber_topics.mixtures.forms import Form
from kleiber_topics.mixtures.law import mixture
from kleiber_topics.mixtures.prediction import predict_point
from kleiber_topics.task_scores.curves import direct, sigmoid
from kleiber_topics.task_scores.law import downstream
from kleiber_topics.task_scores.prediction import evaluate
from kleiber_topics.task_scores.runs import read_runs

LEVEL, DRAWS = 0.9, 400
DOMAINS, MIXTURES = 5, 64
FLOOR = 0.25
SMALL = 1e9  # parameters of the largest models that are fitted
CHANCE = {
    "mmlu": 0.25, "hellaswag": 0.25, "arc_": 0.25, "boolq": 0.5, "csqa": 0.2, "openbook": 0.25, "piqa": 0.5,
    "socialiqa": 1 / 3, "siqa": 1 / 3, "winogra": 0.5, "copa": 0.5, "commonsense_qa": 0.2, "coqa": 0.0, "squad": 0.0,
    "lambada": 0.0, "jeopardy": 0.0, "math_qa": 0.2, "logi_qa": 0.25, "bigbench_qa_wikidata": 0.0,
    "bigbench_operators": 0.0, "bigbench_cs_algorithms": 0.0, "bigbench_dyck_languages": 0.0,
}  # fmt: skip


def inside(entry: dict[str, Any], truth: float) -> bool:
    return bool(entry["lo"] <= truth <= entry["hi"])


def simulate_mixture(name: str, seed: int) -> dict[str, bool]:
    """Whether each interval of one simulated table of mixtures contains the truth."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(DOMAINS), size=MIXTURES + 1)
    losses = 3 if name == "exponential" else 1
    shape = (losses, DOMAINS)
    slopes = rng.normal(-0.6, 0.8, shape) if name == "exponential" else -rng.gamma(1, 0.1, shape)
    truth = np.column_stack([np.full(losses, 3.0), slopes])
    form = Form(name, DOMAINS, 0.02)
    columns = [f"w_{j}" for j in range(DOMAINS)]
    observed = form.predict(truth, weights) + rng.normal(0, 0.02, size=(losses, MIXTURES + 1))
    frame = pd.DataFrame(weights, columns=columns).assign(**{f"loss_{i}": row for i, row in enumerate(observed)})
    roles = {"w": "w_*", "loss": "loss_*"}
    record = mixture().fit_table(frame.iloc[:MIXTURES], roles, Settings(form=name, bootstrap=DRAWS, seed=seed))
    answer = mixture().predict_point(record, {})
    best = np.array([[entry["value"] for entry in answer["best"]["weights"].values()]])
    other = np.array([list(answer["reference"]["weights"].values())])
    at_best, at_other = (float(form.predict(truth, each).mean()) for each in (best, other))
    new, measured = mixture().predict_rows(record, frame.iloc[MIXTURES:], roles)
    return {
        "loss of the chosen mixture": inside(answer["best"]["loss"], at_best),
        "gain over proportional": inside(answer["gain"], at_best - at_other),
        "loss of the proportional mixture": inside(answer["reference"]["loss"], at_other),
        "new run": inside(new[0], float(measured[0])),
    }


def simulate_scores(route: str, seed: int) -> dict[str, bool]:
    """Whether each interval of one simulated table of task scores contains the truth."""
    rng = np.random.default_rng(seed)
    sizes, ratios = np.meshgrid(np.geomspace(1e8, 1.5e9, 5), [10, 20, 40, 80, 160])
    N = np.append(sizes.ravel(), [4e8, 4e9])
    D = N * np.append(ratios.ravel(), [30.0, 80.0])
    loss = 0.5 + 60 * N**-0.25 + 80 * D**-0.25
    floor = np.full(len(N), FLOOR)
    if route == "chained":
        score = sigmoid(loss, floor, top=np.array(0.9), middle=np.array(1.1), slope=np.array(5.0))
    else:
        score = direct(N, D, floor, A=np.array(600.0), B=np.array(600.0), alpha=np.array(0.32))
    frame = pd.DataFrame({
        "N": N, "D": D, "loss": loss * np.exp(rng.normal(0, 0.004, len(N))),
        "acc": np.clip(score + rng.normal(0, 0.008, len(N)), 0, 1),
    })  # fmt: skip
    fitted, held_out = frame.iloc[:-2], frame.iloc[-2:-1]
    roles = {"floor": str(FLOOR)}
    record = downstream().fit_table(fitted, roles, Settings(route=route, bootstrap=DRAWS, seed=seed))
    new, measured = downstream().predict_rows(record, held_out, roles)
    _, refits, runs = evaluate(record, N[-2:], D[-2:], floor[-2:])
    ends, far = interval(refits, LEVEL), interval(runs[:, 1], LEVEL)
    return {
        "new run inside": inside(new[0], float(measured[0])),
        "score of the law inside": bool(ends[0][0] <= score[-2] <= ends[1][0]),
        "score of the law one decade outside": bool(ends[0][1] <= score[-1] <= ends[1][1]),
        "new run one decade outside, with misfit": bool(far[0] <= frame["acc"].iloc[-1] <= far[1]),
    }


def coverage(tables: int, only: str) -> dict[str, Any]:
    """The fraction of the tables whose intervals contain the truth, by law and quantity.

    only  part of the names of the laws to simulate
    """
    jobs = [(f"mixture, {name}", simulate_mixture, name) for name in ("ridge", "exponential", "linear")]
    jobs += [(f"downstream, {route}", simulate_scores, route) for route in ("chained", "direct")]
    out: dict[str, Any] = {"tables": tables, "level": LEVEL, "draws": DRAWS}
    for label, function, choice in (job for job in jobs if only in job[0]):
        start = time.process_time()
        rows = pd.DataFrame([function(choice, seed) for seed in range(tables)])
        out[label] = {key: round(float(value), 3) for key, value in rows.mean().items()}
        print(label, out[label], f"{time.process_time() - start:.0f} s", flush=True)
    return out


def chance_of(task: str) -> dict[str, str]:
    """The mapping of the chance level of a task; empty for a task whose level is not in CHANCE, which is left out."""
    return next(({"floor": f"{level}"} for name, level in CHANCE.items() if task.startswith(name)), {})


def held_out(frame: pd.DataFrame, loss: str, task: str) -> dict[str, Any] | None:
    """The errors of the law of one task on the models above SMALL, or None where it is refused before it is fitted."""
    roles = {"N": "N", "D": "D", "loss": loss, "acc": f"acc:{task}", **chance_of(task)}
    small, large = frame.loc[frame["N"] < SMALL], frame.loc[frame["N"] > SMALL]
    try:
        record = downstream().fit_table(small, roles, Settings(bootstrap=DRAWS // 2))
    except ValueError as error:
        print(f"{task}: {error}", flush=True)
        return None
    runs, above = read_runs(small, roles), read_runs(large, roles, fitted=False)
    answer = compare(*downstream().predict_rows(record, large, roles))
    out: dict[str, Any] = {
        "task": task, "route": record["route"], "predictable": not record["refused"],
        "chosen": round(answer["mae"], 4), "coverage": round(answer["coverage"], 3),
    }  # fmt: skip
    for route in downstream.ROUTES:
        predicted = downstream.fit_route(runs, route, "sigmoid").predict(above)
        out[route] = round(float(np.abs(predicted - above.acc).mean()), 4)
    last = small.loc[small["N"] == small["N"].max(), f"acc:{task}"].mean()
    return out | {"largest fitted runs": round(float((large[f"acc:{task}"] - last).abs().mean()), 4)}


def published(folder: Path) -> dict[str, Any]:
    """Errors by task, and rank correlations of the law of mixtures with its own and a larger size."""
    out: dict[str, Any] = {"regmix": regmix(folder / "regmix")}
    ladder = pd.read_csv(folder / "olmo_ladder" / "final_mean_last5.csv")
    tasks = [name[4:] for name in ladder if name.startswith("acc:")]
    rows = [held_out(ladder, f"bpb:{task}", task) for task in tasks]
    table = [row | {"set": "OLMo ladder"} for row in rows if row]
    models = pd.read_csv(folder / "gadre_downstream" / "models_losses_accuracies.csv")
    models = models.loc[models["train"] == "rpj"]
    for task in (name[4:] for name in models if name.startswith("acc:") and chance_of(name[4:])):
        row = held_out(models, "loss_c4_val", task)
        table += [row | {"set": "Gadre, rpj"}] if row else []
    return out | {"tasks": table, "summary": summarize(pd.DataFrame(table))}


def summarize(table: pd.DataFrame) -> dict[str, Any]:
    """Means over the tasks that are predictable, by set."""
    out = {}
    for name, rows in [*table.groupby("set"), ("all", table)]:
        kept = rows[rows["predictable"]]
        columns = ["chained", "direct", "chosen", "largest fitted runs", "coverage"]
        out[str(name)] = {"tasks": len(rows), "predictable": len(kept)} | {
            column: round(float(kept[column].mean()), 4) for column in columns
        }
        out[str(name)] |= {f"median {route}": round(float(kept[route].median()), 4) for route in columns[:3]}
        out[str(name)]["direct better"] = int((kept["direct"] < kept["chained"]).sum())
    return out


def regmix(folder: Path) -> dict[str, Any]:
    """Rank correlations of predicted and measured losses of Pile-CC, by form and size."""
    roles, out = {"w": "w_*", "loss": "loss_pile_cc"}, {}
    train, small, large = (pd.read_csv(folder / f"{name}.csv") for name in ("train_1m", "test_1m", "test_60m"))
    for form in ("ridge", "exponential", "linear"):
        record = mixture().fit_table(train, roles, Settings(form=form, bootstrap=DRAWS))
        out[form] = {"cross-validation": round(record["cross_validation"][form], 4), "offset": record["offset"]}
        for size, frame in (("1M", small), ("60M", large)):
            rows, measured = mixture().predict_rows(record, frame, roles)
            ranks = rank_correlation(np.array([row["value"] for row in rows]), measured)
            out[form][size] = {key: round(value, 4) for key, value in ranks.items()}
    return out


def own(folder: Path) -> dict[str, Any]:
    """The law of study=mixture by form, its errors on held-out mixtures, its best mixture, and losses of the arms."""
    roles = {"w": "parts/*", "loss": "val/*/loss"}
    frames = {arm: select(folder, roles, [f"arm = {arm}"]) for arm in ("fitted", "held_out")}
    out: dict[str, Any] = {"mixtures": {arm: len(frame) for arm, frame in frames.items()}, "held_out": {}}
    for form in ("ridge", "exponential", "linear"):
        record = mixture().fit_table(frames["fitted"], roles, Settings(form=form))
        rows, measured = mixture().predict_rows(record, frames["held_out"], roles)
        out["held_out"][form] = {"cross-validation": record["cross_validation"][form], **compare(rows, measured)}
    record = mixture().fit_table(frames["fitted"], roles, Settings())
    losses = frames["fitted"][record["losses"]].mean(axis=1)
    names = list(record["columns"])
    sampled = dict(zip(names, frames["fitted"].loc[losses.idxmin(), list(record["columns"].values())], strict=True))
    best = predict_point(record, {})
    out |= {"form": record["form"], "weights": best["best"]["weights"], "loss": best["best"]["loss"], "arms": {}}
    out |= {"sampled": {"weights": sampled, "loss": float(losses.min())}, "range": [losses.min(), losses.max()]}
    for arm in ("proportional", "sampled", "proposed"):
        rows = select(folder.with_name("mixture_arms"), roles, [f"arm = {arm}"])
        predicted, measured = mixture().predict_rows(record, rows, roles)
        weights = {name: float(rows.iloc[0][column]) for name, column in record["columns"].items()}
        out["arms"][arm] = {"weights": weights, "predicted": predicted[0]["value"], "measured": float(measured.mean())}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("coverage", "published", "own"))
    parser.add_argument("--tables", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("../shared/laws"))
    parser.add_argument("--only", default="", help="part of the name of a law, such as ridge")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = {"published": published, "own": own}
    answer = (
        coverage(options.tables, options.only) if options.part == "coverage" else parts[options.part](options.folder)
    )
    if options.out is None:
        json.dump(answer, sys.stdout, indent=1)
        return
    earlier = json.loads(options.out.read_text()) if options.out.exists() else {}
    merged = {**earlier, options.part: {**earlier.get(options.part, {}), **answer}}
    options.out.write_text(json.dumps(merged, indent=1) + "\n")


if __name__ == "__main__":
    main()
