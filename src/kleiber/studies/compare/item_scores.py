"""Models compared by their scores of each item of a task, as kleiber, lm-eval and lighteval record them.

kleiber writes `evals/EVALUATION.json` into the folder of a run, whose task is EVALUATION/DATA; lm-eval writes
`samples_TASK_DATE.jsonl` with `--log_samples`, lighteval `details_TASK_DATE.parquet` with `--save-details`. Scores are
paired by item. The interval is over items: another training run of the same recipe would differ by its seed as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType

from kleiber.config.errors import did_you_mean, listed
from kleiber.records.files import load_json, read_json
from kleiber.records.regular_files import DamagedFile, open_to_read, read_bytes
from kleiber.studies.claims import Claim, Question, decide_together, read_claims
from kleiber.studies.compare.foreign_table import NOT_TESTABLE, Options
from kleiber.studies.decision import as_row, mean_estimate
from kleiber.studies.laws.table_files import MAX_BYTES, check_size
from kleiber.studies.statements import answer_text
from kleiber.studies.study import Figures, Findings
from kleiber.types import Json

FILES = {
    ".jsonl": re.compile(r"samples_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl"),
    ".parquet": re.compile(r"details_(.+?)(?:_\d{4}-\d\d-\d\dT[\d.:-]+)?\.parquet"),
}
HASHES = ("doc_hash", "prompt_hash", "target_hash")  # of an item in lm-eval's files
METRICS = ("metric", "metrics")  # columns of lighteval's files
ITEM_COLUMNS = ("doc", "example", "full_prompt")  # columns of lighteval's files that say which item a row is of


@dataclass(frozen=True)
class ItemScores:
    """The scores of a model by item, for each metric.

    contents  a hash of what each item asks, where the file has one
    better    which values of a metric are better, where the file says so
    """

    name: str
    scores: Mapping[str, Mapping[object, float]]
    contents: Mapping[object, str]
    better: Mapping[str, str] = field(default_factory=dict)


def read_item_scores(folder: Path, task: str) -> ItemScores:
    """Reads the scores by item of a task from a run, or from a folder of results.

    Raises ValueError where the folder has none, or those of several evaluations.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} must be a run, or a folder of results of lm-eval or lighteval")
    if (folder / "config.yaml").is_file():
        return read_run_items(folder, task)
    files = {file: task_of(file) for file in sorted(folder.rglob("*")) if task_of(file) is not None}
    tasks = sorted({str(name) for name in files.values()})
    matching = [file for file, name in files.items() if name in (task, f"leaderboard|{task}")]
    if not matching:
        near = did_you_mean(task, tasks) or (f"; tasks there: {listed(tasks)}" if tasks else "")
        hint = "lm-eval writes them with --log_samples, lighteval with --save-details"
        raise ValueError(f"--task {task}: {folder} has no scores by item of it{near}; {hint}")
    if len(matching) > 1:
        names = listed([str(file.relative_to(folder)) for file in matching])
        raise ValueError(f"--task {task}: {folder} has several evaluations, {names}: name a folder with one of them")
    rows = (read_samples if matching[0].suffix == ".jsonl" else read_details)(matching[0])
    scores: dict[str, dict[object, float]] = {}
    contents: dict[object, str] = {}
    for item, content, values in rows:
        for metric, value in values.items():
            if item in scores.setdefault(metric, {}):
                raise ValueError(f"{matching[0]} has item {item} twice: keep one filter of the task's scores")
            scores[metric][item] = value
        contents[item] = content
    return ItemScores(folder.name or str(folder), scores, contents)


def read_run_items(run: Path, task: str) -> ItemScores:
    """Reads the scores by item of a task, EVALUATION/DATA, from a run.

    Raises ValueError where it was not evaluated on that, and DamagedFile for a file that kleiber did not write so.
    """
    evaluation, _, data = task.partition("/")
    path = run / "evals" / f"{Path(evaluation).name}.json"
    content = read_json(path) if path.is_file() else {}
    by_data = content.get("items") if isinstance(content, dict) else None
    node = by_data.get(data) if isinstance(by_data, dict) else None
    if node is None:
        names = [f"{evaluation}/{name}" for name in by_data] if isinstance(by_data, dict) else []
        hint = f"it has {listed(names)}" if names else f"run kleiber eval {run} --evals {evaluation or 'generation'}"
        raise ValueError(f"--task {task}: {run} has no scores by item of EVALUATION/DATA={task}; {hint}")
    try:
        contents, times = [], Counter[str]()
        for text in map(str, node["contents"]):  # equal items stay apart, in their order
            contents.append((text, times[text]))
            times[text] += 1
        scores = {
            str(metric): dict(zip(contents, map(float, values), strict=True))
            for metric, values in node["values"].items()
        }
        better = {metric: str(content["scores"][data][metric]["better"]) for metric in scores}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DamagedFile(path, f"items of {data} are not a number of each metric for each item") from None
    return ItemScores(run.name, scores, {item: item[0] for item in contents}, better)


def task_of(file: Path) -> str | None:
    """Returns the task of a file of scores by item; None for another file."""
    pattern = FILES.get(file.suffix)
    match = None if pattern is None else pattern.fullmatch(file.name)
    return None if match is None else match.group(1)


def read_samples(path: Path) -> list[tuple[object, str, dict[str, float]]]:
    """Returns item, hash of its content and scores by metric of each line of a file of lm-eval."""
    rows = []
    for number, line in enumerate(filter(bytes.strip, read_bytes(path, MAX_BYTES).split(b"\n")), 1):
        row = load_json(line.decode())
        if not isinstance(row, dict) or "doc_id" not in row:
            raise DamagedFile(path, f"line {number} is no sample of lm-eval: it has no doc_id")
        names = row.get("metrics") or [key for key, value in row.items() if isinstance(value, float)]
        content = next((str(row[key]) for key in HASHES if row.get(key)), hashed(row.get("doc")))
        suffix = row.get("filter") or "none"
        metrics = {f"{name}" if suffix == "none" else f"{name},{suffix}": number_of(row.get(name)) for name in names}
        rows.append((row["doc_id"], content, {name: value for name, value in metrics.items() if value is not None}))
    return rows


def read_details(path: Path) -> list[tuple[object, str, dict[str, float]]]:
    """Returns item, hash of its content and scores by metric of each row of a file of lighteval, in their order."""
    import pyarrow
    import pyarrow.parquet

    with open_to_read(path) as file:
        try:
            source = pyarrow.parquet.ParquetFile(file)
            names = source.schema_arrow.names
            kept = [name for name in (*METRICS, *ITEM_COLUMNS) if name in names]
            check_size(path, len(kept), source.metadata.num_rows * len(kept), source.metadata.serialized_size)
            table = source.read(columns=kept).to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise DamagedFile(path, str(error)) from None
    rows = []
    for number, row in enumerate(table):
        scores = next((row[name] for name in METRICS if isinstance(row.get(name), Mapping)), None)
        if scores is None:
            raise DamagedFile(path, f"row {number} is no sample of lighteval: it has no column {' or '.join(METRICS)}")
        values = {name: number_of(value) for name, value in scores.items()}
        content = next((hashed(row[name]) for name in ITEM_COLUMNS if row.get(name)), "")
        rows.append((number, content, {name: value for name, value in values.items() if value is not None}))
    return rows


def number_of(value: object) -> float | None:
    """Returns a score as a number; None for what is none, such as the parts of a corpus score."""
    return float(value) if isinstance(value, bool | int | float) else None


def hashed(value: object) -> str:
    """Returns a hash of what an item asks."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def compare_items(
    models: Sequence[ItemScores], task: str, measure: str | None, options: Options, better: str | None = None
) -> Findings:
    """Compares models by the scores of the items that both have.

    measure  one of the metrics of the task; None for the only one
    better   which values are better; None for what the files say, else for that of the options

    Raises ValueError for another metric, several metrics and no choice, and items of different content.
    """
    names = list(dict.fromkeys(model.name for model in models))
    if len(names) < max(len(models), 2):
        raise ValueError(f"--task {task} needs two or more folders with different names, not {listed(names)}")
    shared = [metric for metric in models[0].scores if all(metric in model.scores for model in models)]
    if measure is None and len(shared) != 1:
        raise ValueError(f"--task {task} has the metrics {listed(shared) or 'none'}: choose one with --measure")
    metric = shared[0] if measure is None else measure
    if metric not in shared:
        raise ValueError(f"--measure {metric} must be one of the metrics of {task}: {listed(shared)}")
    recorded = models[0].better.get(metric)
    if better is None and recorded in ("lower", "higher"):
        options = replace(options, better=recorded)
    baseline = options.baseline or names[0]
    if baseline not in names:
        raise ValueError(f"--baseline {baseline} must be one of the folders {listed(names)}")
    nodes = options.claims or [{"arm": name, "against": baseline} for name in names if name != baseline]
    defaults = {"measure": metric, "direction": options.better}
    claims = read_claims(nodes, "claims", defaults, {"arm": names})
    by_name = {model.name: model for model in models}
    results = decide_together(
        [question_of(claim, by_name, options) for claim in claims], options.level, 1, options.variance
    )
    means = [
        {"model": model.name, **as_row(mean_estimate([*model.scores[metric].values()], options.level, ""))}
        for model in models
    ]
    rows = [{"arm": r.claim.of["arm"], "against": (r.claim.against or {}).get("arm"), "equal": "items",
             "better": options.better, **as_row(r.estimate)} for r in results if r.estimate is not None]  # fmt: skip
    charts: Figures = {"differences": partial(draw, metric, rows, names, results[0].level)} if rows else {}
    return Findings(
        answer=answer_text("", results, options.level),
        question=f"Which model has the better {metric} on {task}?",
        claims=results,
        caveats=[{"code": "items", "text": ONE_RUN}],
        tables={"Scores": means},
        figures=charts,
        methods=METHODS.format(level=f"{options.level:.0%}", claims=len(claims)),
        measure=metric,
    )


ONE_RUN = (
    "intervals are over items of the task: they say whether these models differ, not whether another training run of "
    "the same recipes would"
)
METHODS = (
    "Models were compared by their differences in score on each item that both were evaluated on, with t intervals "
    "over items that hold together at a confidence of {level} over {claims} claims."
)


def draw(metric: str, rows: Sequence[Json], names: Sequence[str], level: float) -> object:
    """Draws the differences of the claims with their intervals."""
    without_count = [{name: value for name, value in row.items() if name != "n"} for row in rows]  # of items, not seeds
    return _figures().differences({metric: without_count}, names, level)


def _figures() -> ModuleType:
    """The module of figures, which imports altair."""
    from kleiber.studies.compare import figures

    return figures


def question_of(claim: Claim, models: Mapping[str, ItemScores], options: Options) -> Question:
    """Returns a claim about models with the differences of their items.

    Raises ValueError for a model that does not exist, a claim that is none about two models, and other items.
    """
    sides = [str(side.get("arm")) for _, side in claim.sides]
    if claim.than is not None or claim.against is None or [*claim.of] != ["arm"] or [*claim.against] != ["arm"]:
        raise ValueError("a claim about a task must have the form {arm: MODEL, against: MODEL}")
    for name in sides:
        if name not in models:
            raise ValueError(f"claims: {name} must be one of the folders {listed([*models])}")
    ours, theirs = (models[name] for name in sides)
    common = [item for item in ours.scores[claim.measure] if item in theirs.scores[claim.measure]]
    differing = [item for item in common if ours.contents[item] != theirs.contents[item]]
    if differing:
        raise ValueError(
            f"item {differing[0]} of {sides[0]} and {sides[1]} has different contents ({len(differing)} of "
            f"{len(common)} items do): evaluate both with the same version of the task and the same prompts"
        )
    values = [ours.scores[claim.measure][item] - theirs.scores[claim.measure][item] for item in common]
    problem = f"{NOT_TESTABLE}{len(common)} items have scores of both models" if len(common) < 2 else ""
    by = f" by more than {claim.margin:g}" if claim.margin else ""
    text = claim.text or f"{sides[0]} has a {claim.direction.replace('_', ' ')} {claim.measure} than {sides[1]}{by}"
    return Question(
        claim=claim, text=text, values=[value - claim.less for value in values], better=options.better,
        problem=problem, paired=True, samples="items",
    )  # fmt: skip
