"""The tables of docs/results/fine_tuning.md: recipes by task, each task left out in turn, and kleiber beside a loop.

    python benchmarks/finetune_table.py RUNS LOOP.jsonl OUT.json [--also RUNS] [--articles RUNS] [--words RUNS]

RUNS is the folder of a sweep over tasks, learning rates and `objective.scale`, and that of --also has further tasks and
seeds. LOOP.jsonl has the lines that benchmarks/finetune.py prints, on the same rows of these tasks. Words are runs on
these tasks with evals=[reference], and articles the run on the table of benchmarks/articles.py.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from kleiber.records.catalog import read_runs
from kleiber.types import Json

DEFAULT = (1.3e-4, 16.0)  # learning rate and scale of all-MiniLM-L6-v2, whose width is 384
HELD_OUT = {"trec_fine": 500, "sst2": 872, "cola": 1043}  # rows
Recipe = tuple[float, float]


def score_of(stage: Json) -> float:
    """Accuracy on the held-out rows, or Pearson's correlation for quantities."""
    metrics = {key.rpartition("/")[2]: value for key, value in stage["metrics"].items() if key.startswith("val/")}
    return metrics["accuracy"] if "accuracy" in metrics else metrics["pearson"]


def leave_one_out(scores: dict[str, dict[Recipe, dict[int, float]]]) -> list[dict[str, object]]:
    """For each task of the sweep, the score of the recipe that the others choose, and the best score.

    The others choose by their mean score (`chosen`, ahead of the second recipe by `margin`), or the recipe that loses
    least to the best one where it loses most (`careful`).
    """
    swept = {task: by for task, by in scores.items() if len(by) > 1}
    means = {task: {recipe: by_seed[0] for recipe, by_seed in by.items()} for task, by in swept.items()}
    rows: list[dict[str, object]] = []
    for task, own in means.items():
        others = [by for name, by in means.items() if name != task]
        averages = {recipe: float(np.mean([by[recipe] for by in others])) for recipe in own}
        chosen, second = sorted(own, key=lambda recipe: averages[recipe], reverse=True)[:2]
        losses = {recipe: max(max(by.values()) - by[recipe] for by in others) for recipe in own}
        careful = min(own, key=lambda recipe: losses[recipe])
        best = max(own, key=lambda recipe: own[recipe])
        rows.append(
            {
                "task": task,
                "chosen_lr": chosen[0], "chosen_scale": chosen[1], "chosen": own[chosen],
                "margin": averages[chosen] - averages[second],
                "careful_lr": careful[0], "careful": own[careful], "careful_loss": own[best] - own[careful],
                "best_lr": best[0], "best_scale": best[1], "best": own[best],
                "default": own[DEFAULT], "loss": own[best] - own[chosen], "default_loss": own[best] - own[DEFAULT],
                "interval": of_rows(own[best], own[chosen], HELD_OUT[task]),
            }
        )  # fmt: skip
    return rows


def of_rows(ours: float, theirs: float, rows: int) -> dict[str, float]:
    """The difference of two accuracies and its two-sided 90 % interval, as if on different held-out rows (normal)."""
    half = stats.norm.ppf(0.95) * ((ours * (1 - ours) + theirs * (1 - theirs)) / rows) ** 0.5
    return {"value": ours - theirs, "lo": ours - theirs - half, "hi": ours - theirs + half}


def of_seeds(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float | None]:
    """The difference of two means over seeds and its two-sided 90 % interval (Welch); None with a single seed."""
    value = float(np.mean(ours) - np.mean(theirs))
    if min(len(ours), len(theirs)) < 2:
        return {"value": value, "lo": None, "hi": None}
    if np.var(ours) + np.var(theirs) == 0:
        return {"value": value, "lo": value, "hi": value}
    ends = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.9)
    return {"value": value, "lo": float(ends.low), "hi": float(ends.high)}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("runs", "loop", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--also", type=Path)
    parser.add_argument("--articles", type=Path)
    parser.add_argument("--words", type=Path)
    a = parser.parse_args()
    scores: dict[str, dict[Recipe, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    seconds: dict[str, list[float]] = defaultdict(list)
    rows: list[dict[str, object]] = []
    for run in [*read_runs(a.runs), *(read_runs(a.also) if a.also else [])]:
        if run.status != "finished":
            continue
        stage, config = run.stages[-1], run.config
        recipe = (config["optimizer"]["lr"], config["objective"].get("scale") or 0.0)
        task = stage["data"]["name"]
        scores[task][recipe][config["seed"]] = score_of(stage)
        trained = stage["tokens"] / stage["tokens_per_s"]
        if recipe == DEFAULT:
            seconds[task].append(trained)
        row = {"task": task, "lr": recipe[0], "scale": recipe[1], "seed": config["seed"], "score": score_of(stage)}
        rows.append(row | {"steps": stage["steps"], "seconds": trained})
    loop: dict[str, list[dict[str, float]]] = defaultdict(list)
    for line in a.loop.read_text().splitlines():
        entry = json.loads(line)
        loop[Path(entry["data"]).name.replace("trec", "trec_fine")].append(entry)
    beside: list[dict[str, object]] = []
    for task, entries in loop.items():
        ours, theirs = list(scores[task][DEFAULT].values()), [entry["score"] for entry in entries]
        row = {"task": task, "kleiber": float(np.mean(ours)), "loop": float(np.mean(theirs))}
        row |= {"difference": of_seeds(ours, theirs), "kleiber_seeds": len(ours), "loop_seeds": len(theirs)}
        row |= {"kleiber_seconds": float(np.mean(seconds[task])), "loop_scores": theirs}
        row |= {"loop_seconds": float(np.mean([entry["seconds"] for entry in entries]))}
        beside.append(row)
    words = {
        run.stage["data"]["name"]: value
        for run in (read_runs(a.words) if a.words else [])
        for name, value in run.metrics.items()
        if name.endswith("tfidf/accuracy")
    }
    stages = [run.stages[-1] for run in (read_runs(a.articles) if a.articles else []) if run.status == "finished"]
    articles = [
        {"score": score_of(stage), "steps": stage["steps"], "seconds": stage["tokens"] / stage["tokens_per_s"]}
        for stage in stages
    ]
    result = {"words": words, "articles": articles, "runs": rows, "left_out": leave_one_out(scores), "beside": beside}
    a.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["left_out"], indent=1), json.dumps(beside, indent=1), sep="\n")


if __name__ == "__main__":
    main()
