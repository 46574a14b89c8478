"""Conversations: rows recognised as turns, and turns as token ids, with a mark on what a model should learn to say.

The template, for every tokenizer (<eos> is its end-of-text id, the markers are plain text unless its vocabulary has
them as tokens):

    <eos><|system|>\n CONTENT \n<|user|>\n CONTENT \n<|assistant|>\n ANSWER <eos> <|user|>\n ...

Answers and the <eos> that ends each are marked; all else is only read. Content is taken as it is, so a user's text that
holds a marker reads like one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from kleiber.types.contracts import Tokenizer

ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
}  # fmt: skip
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
ALPACA = ("instruction", "input", "output")
JINJA = (  # the template as transformers reads it
    "{{ eos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}{% else %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
FORMS = "messages; prompt, response; prompt, completion; instruction, input, output; question, answer"


@dataclass(frozen=True)
class Turn:
    role: str  # system, user or assistant
    content: str


Conversation = list[Turn]


def turns(messages: Any, where: str = "messages") -> Conversation:
    """Messages of role and content (or from and value). Raises ValueError for a role that nobody here plays, and for
    what is no message and no text."""
    parsed = []
    if isinstance(messages, str):
        raise ValueError(f"{where}: {messages!r:.80} is no list of messages of role and content")
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"{where}: {message!r:.80} is no message of role and content")
        speaker = message.get("role", message.get("from"))
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise ValueError(f"{where}: role {speaker!r} is not one of {', '.join(ROLES)}")
        parsed.append(Turn(role, _text(message.get("content", message.get("value")), where)))
    return parsed


def conversation(row: Mapping[str, Any]) -> Conversation:
    """The turns of a row, by the columns it has; the first form of FORMS that fits. Raises ValueError for none."""
    for name in ("messages", "conversations"):
        if name in row:
            return turns(row[name] or (), name)
    if {"instruction", "output"} <= row.keys():
        asked, extra = (_text(row.get(name), name) for name in ("instruction", "input"))
        prompt = f"{asked}\n\n{extra}" if extra.strip() else asked
        return [Turn("user", prompt), Turn("assistant", _text(row["output"], "output"))]
    for prompt, answer in PAIRS:
        if {prompt, answer} <= row.keys():
            return [*side(row[prompt], "user", prompt), *side(row[answer], "assistant", answer)]
    raise ValueError(f"no form of conversation in the columns {', '.join(row)}: they are read as {FORMS}")


def recognised(columns: Sequence[str]) -> bool:
    names = set(columns)
    return bool(names & {"messages", "conversations"}) or any(
        set(form) <= names for form in (*PAIRS, ("instruction", "output"))
    )


def side(value: Any, role: str, where: str) -> Conversation:
    """What stands in a column: a text that `role` says, or messages. Raises ValueError for anything else."""
    if value is None or isinstance(value, str):
        return [Turn(role, value or "")]
    if not isinstance(value, Iterable):
        raise ValueError(f"{where}: {value!r} is neither text nor messages: write it as text")
    return turns(value, where)


def _text(value: Any, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {value!s:.80} is no text: write it as text")
    return value or ""


@dataclass(frozen=True)
class Encoded:
    """Ids of a conversation, and which of them are answers (and thus targets)."""

    ids: Int[np.ndarray, "time"]
    answers: Bool[np.ndarray, "time"]


def encoded(conversations: Sequence[Conversation], tokenizer: Tokenizer, last_only: bool = False) -> list[Encoded]:
    """The conversations by the template. `last_only`: of several answers only the last is marked."""
    texts = [text for dialog in conversations for turn in dialog for text in _texts(turn)]
    ids = iter(tokenizer.encode_many(texts))
    return [_joined(dialog, ids, tokenizer.eos, last_only) for dialog in conversations]


def prompt(dialog: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Ids up to where the next answer begins: what a model is given to answer."""
    before = encoded([dialog], tokenizer)[0].ids.tolist()
    return [*before, *tokenizer.encode(_texts(Turn("assistant", ""))[0])]


def _texts(turn: Turn) -> tuple[str, ...]:
    """What is encoded by itself, so that an answer's tokens do not depend on what stands around it."""
    if turn.role == "assistant":
        return ("<|assistant|>\n", turn.content)
    return (f"<|{turn.role}|>\n{turn.content}\n",)


def _joined(dialog: Conversation, ids: Any, eos: int, last_only: bool) -> Encoded:
    parts: list[Any] = [[eos]]
    marks = [np.zeros(1, bool)]
    last = max((i for i, turn in enumerate(dialog) if turn.role == "assistant"), default=-1)
    for i, turn in enumerate(dialog):
        opening = next(ids)
        parts.append(opening)
        marks.append(np.zeros(len(opening), bool))
        if turn.role == "assistant":
            answer = next(ids)
            parts += [answer, [eos]]
            marks.append(np.full(len(answer) + 1, i == last or not last_only))
    return Encoded(np.concatenate(parts).astype(np.int64), np.concatenate(marks))
