"""Tasks of EleutherAI's lm-eval on a kleiber model: without exporting the model, and without the network.

lm-eval is an optional package. `HarnessLM` is the model class that lm-eval calls; its conventions for empty contexts
and rolling windows are those of lm-eval, except that a whole text has one begin token in front, where lm-eval's own
class puts two in front of a text for Llama. Requests are sorted by length and cut into batches of a fixed number of
rows, so a score does not depend on the other requests. Softmax is computed in fp32.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, runtime_checkable

import torch

from kleiber.evals.evaluation import Evaluation, Results, Score, Scores, Subject
from kleiber.models.generation import continuations
from kleiber.types.access import CodePath
from kleiber.types.batch import Batch
from kleiber.types.model import Model, device_of
from kleiber.types.score import Better
from kleiber.types.tokenizer import Tokenizer

if importlib.util.find_spec("lm_eval"):
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
else:  # `score_tasks` raises an error that names the missing package
    TemplateLM = object


class Harness(Evaluation):
    """Scores of lm-eval tasks.

    tasks       names of the tasks
    task_files  a folder of task definitions, which replace those that come with lm-eval; null for lm-eval's
    """

    causal = True
    reads_data = False

    def __init__(self, tasks: Sequence[str], task_files: CodePath | None = None) -> None:
        self.tasks, self.task_files = tasks, task_files

    def evaluate(self, subject: Subject) -> Results:
        """The metrics of each task, as lm-eval computes them; see `score_tasks`."""
        folder = None if self.task_files is None else Path(self.task_files)
        measured = score_tasks(subject.model, subject.tokenizer, self.tasks, folder, subject.rows, limit=subject.limit)
        scores: dict[str, Scores] = {}
        for name, score in measured.items():
            task, _, metric = name.partition("/")
            scores.setdefault(task, {})[metric] = score
        return Results(scores)


def score_tasks(
    model: Model,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    include_path: Path | None = None,
    batch_size: int = 16,
    num_fewshot: int | None = None,
    limit: int | None = None,
) -> Scores:
    """Metrics by `task/metric`, with standard errors as `task/metric_stderr`; their directions are those of lm-eval.

    include_path  a folder of task definitions, which replace those that come with lm-eval; None for lm-eval's
    Raises ValueError without the package lm-eval, for a folder that does not exist, and for unknown tasks.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("--evals harness needs the package lm-eval: pip install 'kleiber[eval]'")
    if include_path is not None and not include_path.is_dir():
        raise ValueError(f"--task-files {include_path} must be a folder of lm-eval task definitions")
    if not tasks:
        raise ValueError("--evals harness needs the names of lm-eval tasks: set --tasks a,b")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    folder = None if include_path is None else str(include_path)
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        source = "lm-eval" if folder is None else f"--task-files {folder}"
        raise ValueError(f"--tasks {','.join(unknown)}: {source} defines no such task")
    evaluation = importlib.import_module("lm_eval").simple_evaluate(
        model=HarnessLM(model, tokenizer, batch_size),
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit,
        task_manager=manager,
        bootstrap_iters=1000,
        log_samples=False,
        verbosity=None,
    )
    assert evaluation is not None
    directions = evaluation.get("higher_is_better", {})  # by task, then by metric; None where it has none
    return {
        f"{task}/{name.replace(',none', '').replace(',', '/')}": task_score(task, name, value, directions.get(task, {}))
        for task, values in evaluation["results"].items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name != "sample_len"
    }


def task_score(task: str, name: str, value: float, higher_is_better: Mapping[str, bool | None]) -> Score:
    """The score of a metric of lm-eval, such as `acc_norm,none`.

    higher_is_better  whether a higher value is better, by metric
    """
    metric, _, kind = name.partition(",")
    better: Better = "none"
    if higher_is_better.get(metric) is not None:
        better = "higher" if higher_is_better[metric] else "lower"
    title = metric.replace("_stderr", ", standard error,") + (f" ({kind})" if kind not in ("", "none") else "")
    return Score(float(value), better=better, label=f"{title.replace('_', ' ')} on {task}")


Tokens = list[int]
LogLikelihood = tuple[float, bool]  # log-probability in nats, and whether the greedy continuation is the same


class GenerationOptions(TypedDict, total=False):
    """The options of a generation request that are used here, by their names in lm-eval."""

    until: str | list[str]
    max_gen_toks: int
    max_new_tokens: int
    do_sample: bool
    temperature: float
    top_p: float


@runtime_checkable
class TextRequest(Protocol):
    """A request of lm-eval for the log-likelihood of a whole text."""

    args: tuple[str]


@runtime_checkable
class GenerationRequest(Protocol):
    """A request of lm-eval for a continuation of a context."""

    args: tuple[str, GenerationOptions]


class HarnessLM(TemplateLM):  # pyright: ignore[reportGeneralTypeIssues]
    """Log-likelihoods and continuations of a causal model with its tokenizer, as lm-eval asks for them.

    max_gen_toks  tokens to generate where a task does not set their number
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, batch_size: int = 16, max_gen_toks: int = 256) -> None:
        super().__init__()
        if not model.causal:
            raise ValueError("--evals harness needs a causal model, such as model=gpt; this model is bidirectional")
        self.model, self.kleiber_tokenizer = model, tokenizer
        self.batch_size, self.max_gen_toks = batch_size, max_gen_toks
        self.max_length: int = model.context
        self._device = device_of(model)

    @property
    def eot_token_id(self) -> int:
        """The token id of the end of a text."""
        return self.kleiber_tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context: the one in front of every document of the training text."""
        return self.kleiber_tokenizer.begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> Tokens:
        """Token ids of a text, with the begin token in front unless `add_special_tokens` is False."""
        if add_special_tokens is False:
            return self.kleiber_tokenizer.encode(string)
        return self.kleiber_tokenizer.encode_prompt(string)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[object, Tokens, Tokens]], disable_tqdm: bool = False, **kwargs: object
    ) -> list[LogLikelihood]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        longest_first = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i][0] + pairs[i][1]), pairs[i]))
        scores: dict[int, LogLikelihood] = {}
        for start in range(0, len(pairs), self.batch_size):
            batch = longest_first[start : start + self.batch_size]
            scores |= dict(zip(batch, self._score([pairs[i] for i in batch]), strict=True))
        return [scores[i] for i in range(len(pairs))]

    @torch.inference_mode()
    def _score(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[LogLikelihood]:
        """Returns the log-likelihood in nats of each continuation, and whether greedy decoding would produce it.

        One forward pass scores all pairs (context, continuation) of token ids. A context that is too long is cut at its
        beginning.
        """
        rows = [(context + continuation)[-(self.max_length + 1) :] for context, continuation in pairs]
        longest = max(len(row) for row in rows) - 1
        tokens = torch.tensor([row[:-1] + [0] * (longest - len(row) + 1) for row in rows], device=self._device)
        lengths = torch.tensor([len(row) - 1 for row in rows], device=self._device)
        columns = torch.arange(longest, device=self._device)
        real, scored = columns < lengths[:, None], torch.tensor([[len(pair[1])] for pair in pairs], device=self._device)
        prefix = columns < lengths[:, None] + 1 - scored if self.model.prefix else None
        hidden = self.model(Batch(tokens, real=None if bool(real.all()) else real, prefix=prefix)).hidden
        scores = []
        for row, state, (_, continuation) in zip(rows, hidden, pairs, strict=True):
            targets = torch.tensor(continuation[-self.max_length :], device=self._device)
            end = len(row) - 1
            logits = self.model.head(state[end - len(targets) : end]).float()
            log_probs = logits.log_softmax(-1).gather(1, targets[:, None])
            scores.append((float(log_probs.sum()), bool((logits.argmax(-1) == targets).all())))
        return scores

    def loglikelihood_rolling(self, requests: Sequence[TextRequest], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each whole text in nats; a text longer than the context is scored in windows."""
        from lm_eval import utils  # pyright: ignore[reportMissingImports]

        windows: list[tuple[None, Tokens, Tokens]] = []
        counts = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)  # the windows begin with the prefix token
            overlapping = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            disjoint = [(None, *utils.make_disjoint_window(window)) for window in overlapping]
            windows += disjoint
            counts.append(len(disjoint))
        scores = iter(self._loglikelihood_tokens(windows))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[GenerationRequest], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop string; greedy unless the task sets a temperature."""
        texts = [""] * len(requests)
        contexts, options = [request.args[0] for request in requests], [request.args[1] for request in requests]
        alike: dict[str, list[int]] = {}
        for i, chosen in enumerate(options):
            alike.setdefault(str(chosen), []).append(i)
        for members in alike.values():
            written = self._continue([contexts[i] for i in members], options[members[0]])
            for i, text in zip(members, written, strict=True):
                texts[i] = text
        return texts

    def _continue(self, contexts: Sequence[str], options: GenerationOptions) -> list[str]:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        length = int(options.get("max_gen_toks") or options.get("max_new_tokens") or self.max_gen_toks)
        if length >= self.max_length:
            raise ValueError(f"max_gen_toks={length} must be < model.context={self.max_length}: a prompt needs room")
        temperature = float(options.get("temperature") or 0.0) if options.get("do_sample") else 0.0
        prompts = [self.tok_encode(text)[-(self.max_length - length) :] or [self.prefix_token_id] for text in contexts]
        decode = self.kleiber_tokenizer.decode
        stop = (lambda ids: any(text in decode(ids) for text in stops)) if any(stops) else None
        rows = continuations(
            self.model, prompts, length, self.eot_token_id, temperature, options.get("top_p"), stop=stop,
            rows=self.batch_size,
        )  # fmt: skip
        return [self._decode(row, stops) for row in rows]

    def _decode(self, ids: Tokens, stops: Sequence[str]) -> str:
        """The text of the ids up to the first stop string."""
        text = self.kleiber_tokenizer.decode(ids)
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text
