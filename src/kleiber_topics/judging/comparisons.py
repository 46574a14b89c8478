"""The comparisons of two models: prompts, the answers of both, and which one is shown on which side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kleiber.config import check_foreign, permit_data
from kleiber.records import read_json, write_json
from kleiber.types import Json
from kleiber_topics.judging.judgments import Comparison, Template, judgments_locked

if TYPE_CHECKING:
    from kleiber.runs import TrainedModel

SCHEMA = "kleiber.answers/1"
TemplateOption = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class Settings:
    """What the comparisons of a file depend on.

    models         paths of the two models, as they are written
    data           names or paths of data whose prompts are used; none: the data of the first run, or built-in text
    prompts        file of prompts, in place of data
    template       of the prompts: chat, plain, or auto (by where they come from)
    limit          most comparisons
    prompt_tokens  most tokens of a prompt that is the beginning of a text
    tokens         most tokens of an answer
    seed           of the answers and the sides
    """

    models: tuple[str, str]
    data: tuple[str, ...] = ()
    prompts: str | None = None
    template: TemplateOption = "auto"
    limit: int = 50
    prompt_tokens: int = 32
    tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def to_json(self) -> Json:
        """The settings as plain data."""
        return {**asdict(self), "models": list(self.models), "data": list(self.data)}


def answers_file(out: Path) -> Path:
    """The file beside the judgments that keeps the answers."""
    return out.with_name(f"{out.stem}.answers.json")


def load_or_answer(settings: Settings, out: Path) -> list[Comparison]:
    """The comparisons that the judgments in `out` are about, answered by the models if they are not kept yet.

    Raises ValueError where the file was begun with other settings, and for models and prompts that cannot be used.
    """
    with judgments_locked(answers_file(out)):
        return _load_or_answer(settings, out)


def _load_or_answer(settings: Settings, out: Path) -> list[Comparison]:
    kept = answers_file(out)
    if kept.is_file():
        content = read_json(kept)
        before, now = content.get("settings", {}), settings.to_json()
        changed = [f"{key}={before.get(key)} (now {now[key]})" for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(
                f"--out {out} was begun with {', '.join(changed)}: repeat that command, or choose another --out"
            )
        return [Comparison(**row) for row in content["comparisons"]]
    comparisons = answer(settings)
    rows = [asdict(comparison) for comparison in comparisons]
    write_json(kept, {"schema": SCHEMA, "settings": settings.to_json(), "comparisons": rows})
    return comparisons


def answer(settings: Settings) -> list[Comparison]:
    """Opens both models and lets them answer the prompts. Pairs of equal answers are left out."""
    from kleiber.data import PLAIN, Turn
    from kleiber.runs import open_model

    permit_data(settings.data)
    runs = [open_model(path) for path in settings.models]
    prompts, template = find_prompts(settings, runs[0])
    dialogs = [[Turn(PLAIN if template == "plain" else "user", prompt)] for prompt in prompts]
    answers = [
        run.answers.write(
            dialogs,
            1,
            settings.tokens,
            settings.temperature,
            settings.top_p,
            seed=settings.seed,
            first=n * len(dialogs),
        )
        for n, run in enumerate(runs)
    ]
    pairs = [(first, second) for (first,), (second,) in zip(*answers, strict=True)]
    return arrange(prompts, pairs, settings.models, template, settings.seed)


def arrange(
    prompts: Sequence[str], pairs: Sequence[tuple[str, str]], models: tuple[str, str], template: Template, seed: int
) -> list[Comparison]:
    """Comparisons with the two answers on random sides. Pairs of equal answers are left out.

    Raises ValueError where all pairs are equal.
    """
    comparisons = []
    for item, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True)):
        if pair[0] != pair[1]:
            swapped = bool(np.random.default_rng([abs(seed), item]).integers(2))
            left, right = (1, 0) if swapped else (0, 1)
            comparisons.append(Comparison(item, prompt, pair[left], pair[right], models[left], models[right], template))
    if not comparisons:
        raise ValueError(f"{models[0]} and {models[1]} gave the same answer to every prompt: nothing can be judged")
    return comparisons


def find_prompts(settings: Settings, run: TrainedModel) -> tuple[list[str], Template]:
    """The prompts, and the template in which the models are given them."""
    from kleiber.data import open_sets, prompts_of, read_prompts
    from kleiber.evals import own_sets

    if settings.prompts is not None:
        prompts, template = read_prompts(Path(settings.prompts))[: settings.limit], default_template(run)
    else:
        if settings.data:
            sets = [s for name in settings.data for s in open_sets(name, run.tokenizer, run.model.context)]
        elif run.config and default_template(run) == "plain":
            sets = own_sets(run.corpus.validation)
        elif run.config:
            check_foreign({"data": run.config["data"]}, run.folder / "config.yaml")
            sets = open_sets(str(run.config["data"]["path"]), run.tokenizer, run.model.context)
        else:
            sets = open_sets("builtin/docs", run.tokenizer, run.model.context)
        share = -(-settings.limit // len(sets))
        parts = [prompts_of(data, run.tokenizer, share, settings.prompt_tokens) for data in sets]
        template = parts[0][1]
        if any(other != template for _, other in parts):
            raise ValueError("--data must be text alone or conversations alone: judge them in two files")
        prompts = list(dict.fromkeys(prompt for part, _ in parts for prompt in part))[: settings.limit]
    return prompts, template if settings.template == "auto" else settings.template


def default_template(run: TrainedModel) -> Template:
    """The template of a conversation for a model that was trained on such, else plain text."""
    if run.config:
        return "plain" if run.record.get("objective") in ("clm", "distill", None) else "chat"
    file = run.folder / "tokenizer_config.json"
    return "chat" if file.is_file() and read_json(file).get("chat_template") else "plain"
