"""The numbers of docs/results/fine_tuning.md: recipes by task, each task left out in turn, and kleiber beside a loop.

    python benchmarks/finetune_table.py OUT.json [--sweep NAME RUNS] [--pairs RUNS LOOP] [--articles|words RUNS]

Replaces the parts of OUT.json whose records are given. A sweep has recipes by tasks and seeds, in one folder of runs or
several, and a name such as `samples`; its rows are added to those that OUT.json has under this name. With several tasks
each has all of the recipes, and is left out in turn. Pairs are runs of one recipe, and the lines that
benchmarks/finetune.py prints on the same rows. Words are runs with evals=[reference], and articles the run on the table
of benchmarks/articles.py.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from kleiber.records.catalog import Run, read_runs
from kleiber.types import Json

Scores = dict[str, dict[str, dict[int, float]]]  # by task, recipe and seed
DEFAULT = "lr 9.1e-5"  # the rate that .035 / width gives all-MiniLM-L6-v2; all else is the default too
# Labels: the key that a recipe of the sweep differs in from the default, and its value there.
OTHERS = {
    ("budget", "epochs"): "passes",
    ("objective", "pooling"): "pooling",
    ("batch", "tokens"): "tokens a step",
    ("schedule", "decay"): "decay",
}
USUAL = {"passes": None, "pooling": "mean", "tokens a step": 4096, "decay": 0.9}


def score_of(stage: Json) -> float:
    """Accuracy on the held-out rows, or Pearson's correlation for quantities."""
    metrics = {key.rpartition("/")[2]: value for key, value in stage["metrics"].items() if key.startswith("val/")}
    return metrics["accuracy"] if "accuracy" in metrics else metrics["pearson"]


def main_score_of(run: Run) -> float:
    """The metric by which the task is usually scored: Matthews correlation on CoLA, F1 on MRPC."""
    return run.metrics[f"val/{run.stage['tasks'][0]}/{run.config['data']['metric']}"]


def recipe_of(config: Mapping[str, Mapping[str, object]]) -> str:
    """The learning rate, or what else differs from the default."""
    values = {label: config[group][key] for (group, key), label in OTHERS.items()}
    changed = [f"{label} {value}" for label, value in values.items() if value != USUAL[label]]
    rate = f"{float(str(config['optimizer']['lr'])):.1e}".replace("e-0", "e-")
    return changed[0] if changed else f"lr {rate}"


def finished(folder: Path) -> list[Run]:
    return [run for run in read_runs(folder) if run.finished]


def left_out(scores: Scores) -> list[Json]:
    """For each task, the recipe that the other tasks choose, and what it loses to the best recipe of the task.

    The others choose the recipe whose largest loss to the best one of a task is least. The best of the task is chosen
    by one seed and scored by the others, in turn: the best score of several recipes would be too high by chance.
    """
    means = {
        task: {recipe: float(np.mean([*by.values()])) for recipe, by in recipes.items()}
        for task, recipes in scores.items()
    }
    worst = {task: {recipe: max(by.values()) - mean for recipe, mean in by.items()} for task, by in means.items()}
    rows: list[Json] = []
    for task, own in scores.items():
        losses = {recipe: max(by[recipe] for name, by in worst.items() if name != task) for recipe in own}
        chosen = min(own, key=lambda recipe: losses[recipe])
        seeds = sorted(own[DEFAULT])
        pairs = []
        for seed in seeds:
            rest = [other for other in seeds if other != seed]
            best = max(own, key=lambda recipe: np.mean([own[recipe][other] for other in rest]))
            pairs.append((own[best][seed], own[chosen][seed], own[DEFAULT][seed]))
        tuned, others, default = (float(np.mean(column)) for column in zip(*pairs, strict=True))
        row: Json = {"task": task, "chosen": chosen, "score": others, "default": default, "tuned": tuned}
        row |= {"loss": tuned - others, "default_loss": tuned - default}
        rows.append(row | {"best": max(means[task], key=means[task].__getitem__)})
    return rows


def of_seeds(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """The difference of two means over seeds and its two-sided 90 % interval (Welch); None with a single seed."""
    value = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return {"value": value, "lo": None, "hi": None}
    if np.var(ours) + np.var(theirs) == 0:
        return {"value": value, "lo": value, "hi": value}
    ends = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.9)
    return {"value": value, "lo": float(ends.low), "hi": float(ends.high)}


def seconds_of(run: Run) -> float:
    return run.stage["seconds"]


def sweep(folders: Sequence[Path], recorded: Sequence[Json]) -> Json:
    """The rows of finished runs with those recorded before, means over the seeds that all recipes of a task have, and
    each task left out."""
    by_run = {(row["task"], row["recipe"], row["seed"]): row for row in recorded}
    for run in (run for folder in folders for run in finished(folder)):
        task, recipe, seed = run.stage["data"]["name"], recipe_of(run.config), run.config["seed"]
        row = {"task": task, "recipe": recipe, "seed": seed, "score": main_score_of(run)}
        by_run[task, recipe, seed] = row | {"steps": run.stage["steps"], "seconds": seconds_of(run)}
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    for (task, recipe, seed), row in by_run.items():
        scores[task][recipe][seed] = row["score"]
    for recipes in scores.values():
        common = set.intersection(*(set(by) for by in recipes.values()))
        for recipe, by in recipes.items():
            recipes[recipe] = {seed: score for seed, score in by.items() if seed in common}
    means = [
        {"task": task, "recipe": recipe, "score": float(np.mean([*by.values()])), "seeds": len(by)}
        for task, recipes in scores.items()
        for recipe, by in recipes.items()
    ]
    left = left_out(scores) if len(scores) > 1 else []
    return {"rows": list(by_run.values()), "means": means, "left_out": left}


def beside(folder: Path, lines: Path) -> list[Json]:
    loop: dict[str, list[Json]] = defaultdict(list)
    for line in lines.read_text().splitlines():
        entry = json.loads(line)
        loop[Path(entry["data"]).name.replace("trec", "trec_fine")].append(entry)
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in finished(folder):
        runs[run.stage["data"]["name"]].append(run)
    rows: list[Json] = []
    for task, entries in loop.items():
        ours, theirs = [score_of(run.stage) for run in runs[task]], [entry["score"] for entry in entries]
        row: Json = {"task": task, "kleiber": float(np.mean(ours)), "loop": float(np.mean(theirs))}
        row |= {"difference": of_seeds(ours, theirs), "kleiber_scores": ours, "loop_scores": theirs}
        row |= {"kleiber_seconds": float(np.mean([seconds_of(run) for run in runs[task]]))}
        rows.append(row | {"loop_seconds": float(np.mean([entry["seconds"] for entry in entries]))})
    return rows


def words(folder: Path) -> Json:
    return {
        run.stage["data"]["name"]: value
        for run in read_runs(folder)
        for name, value in run.metrics.items()
        if name.endswith("tfidf/accuracy")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=Path, nargs=2, metavar=("RUNS", "LOOP"))
    parser.add_argument("--sweep", nargs="+", action="append", default=[], metavar=("NAME", "RUNS"))
    for name in ("--articles", "--words"):
        parser.add_argument(name, type=Path, metavar="RUNS")
    a = parser.parse_args()
    result: Json = json.loads(a.out.read_text()) if a.out.exists() else {}
    for name, *folders in a.sweep:
        result[name] = sweep([Path(folder) for folder in folders], result.get(name, {}).get("rows", []))
    if a.pairs:
        result["beside"] = beside(*a.pairs)
    if a.words:
        result["words"] = words(a.words)
    if a.articles:
        result["articles"] = [
            {"score": score_of(run.stage), "steps": run.stage["steps"], "seconds": seconds_of(run)}
            for run in finished(a.articles)
        ]
    a.out.write_text(json.dumps(result, indent=1) + "\n")
    for name, *_ in a.sweep:
        print(json.dumps({name: result[name]["left_out"]}, indent=1))


if __name__ == "__main__":
    main()
