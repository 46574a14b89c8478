"""Tasks of lm-eval on a model of ours, without an export and without the network.

The package is an optional extra that is imported when it is used. A folder may hold further task files.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from kleiber.evals import Subject
from kleiber.types.contracts import Tokenizer
from kleiber.types.model import Model


def evaluate(subject: Subject) -> dict[str, float]:
    """The tasks of `kleiber eval --evals harness --tasks a,b [--task-files DIR]`."""
    return score_tasks(subject.model, subject.corpus.tokenizer, subject.tasks, subject.task_files)


def score_tasks(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    include_path: Path | None = None,
    batch_size: int = 16,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> dict[str, float]:
    """Metrics by `task/metric`, with `task/metric_stderr` beside each that has one.

    include_path  a folder of task files; with one, only its tasks are known, and no index of lm-eval's is read
    Raises ValueError without lm-eval, and for tasks that it does not know.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("evals=harness needs the package lm-eval: pip install 'kleiber[eval]'")
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"{include_path}: no such folder of task files")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    from kleiber.evals.harness_lm import HarnessLM

    own = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=own, include_defaults=own is None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        raise ValueError(f"harness: no such tasks: {', '.join(unknown) or 'none given'}; name some with --tasks")
    told = lm_eval.simple_evaluate(
        model=HarnessLM(model, tokenizer, batch_size),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=False,
        verbosity=None,
    )
    assert told is not None
    return {
        f"{task}/{name.replace(',none', '').replace(',', '/')}": float(value)
        for task, values in told["results"].items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len"
    }
