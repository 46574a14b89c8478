r"""Conversations: rows of a table as turns, and turns as token ids with a mark on the answers.

The template is the same for every tokenizer. <begin> is what the tokenizer has in front of a document, and <eos> its
end-of-text id, which are the same for many; the role markers are plain text, unless the vocabulary has them as tokens:

    <begin><|system|>\n CONTENT \n<|user|>\n CONTENT \n<|assistant|>\n ANSWER <eos> <|user|>\n ...

The tokens of each answer and the <eos> that ends it are marked as targets. Content is encoded without special tokens,
even where it spells them. A role marker that is plain text is not escaped, so one in a user's text is read as a marker.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Integer

from kleiber.types import Row
from kleiber.types.tokenizer import Tokenizer

TEMPLATE = "chat/1"  # part of every identity: raise it when the template changes
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant",
}  # fmt: skip
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("question", "answer"))
JINJA = (  # the template as transformers reads it, after the token in front; MARKER and ANSWER stand for gaps
    "{% for message in messages %}MARKER{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\n' }}ANSWER{{ message['content'] + eos_token }}{% else %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}PROMPT{{ '<|assistant|>\n' }}{% endif %}"
)
GAPS = {  # by the place of a gap, when there is one: not behind the token in front or an answer, which end with a token
    "MARKER": "{% if not loop.first and loop.previtem['role'] != 'assistant' %}{{ ' ' }}{% endif %}",
    "ANSWER": "{% if message['content'] %}{{ ' ' }}{% endif %}",
    "PROMPT": "{% if messages and messages[-1]['role'] != 'assistant' %}{{ ' ' }}{% endif %}",
}
FORMS = (
    "messages; prompt, response; prompt, completion; instruction, input, output; instruction, instances; "
    "question, answer"
)


@dataclass(frozen=True)
class Turn:
    """One message. `role` is system, user or assistant; or text, for a prompt that the answer continues as it is."""

    role: str
    content: str


Conversation = list[Turn]
PLAIN = "text"  # role of the first of two turns that are one text, in no template


def is_answer(turn: Turn) -> bool:
    """Whether a turn is an answer by the assistant that is not empty."""
    return turn.role == "assistant" and turn.content != ""


def parse_messages(messages: object, column: str = "messages") -> Conversation:
    """Returns the turns of a list of messages with role and content (or from and value).

    Raises ValueError, naming the column, for an unknown role and for anything that is not such a list.
    """
    if isinstance(messages, str) or not isinstance(messages, Iterable):
        raise ValueError(f"{column}: {messages!r:.80} must be a list of messages with role and content")
    parsed = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"{column}: {message!r:.80} must be a message with role and content")
        speaker = message.get("role", message.get("from"))
        role = ROLES.get(str(speaker).lower())
        if role is None:
            raise ValueError(f"{column}: role {speaker!r} must be one of {', '.join(ROLES)}")
        parsed.append(Turn(role, _text(message.get("content", message.get("value")), column)))
    return parsed


def parse_row(row: Row) -> Conversation:
    """Returns the turns of a row, in the first form of FORMS that its columns fit. Raises ValueError for no form."""
    for name in ("messages", "conversations"):
        if name in row:
            return parse_messages(row[name] or (), name)
    if {"instruction", "instances"} <= row.keys():
        return parse_row({"instruction": row["instruction"], **first_instance(row["instances"])})
    if {"instruction", "output"} <= row.keys():
        instruction, extra = (_text(row.get(name), name) for name in ("instruction", "input"))
        prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
        return [Turn("user", prompt), Turn("assistant", _text(row["output"], "output"))]
    for prompt, answer in PAIRS:
        if {prompt, answer} <= row.keys():
            return [*parse_column(row[prompt], "user", prompt), *parse_column(row[answer], "assistant", answer)]
    raise ValueError(f"the columns {', '.join(row)} are not those of a conversation, which are one of: {FORMS}")


def first_instance(instances: object) -> Row:
    """Returns input and output of the first instance of a task of Self-Instruct (Wang et al. 2022, arXiv:2212.10560).

    Raises ValueError for anything but a list of such mappings.
    """
    listed = list(instances) if isinstance(instances, Iterable) and not isinstance(instances, str) else []
    if not listed or not isinstance(listed[0], Mapping) or "output" not in listed[0]:
        raise ValueError(f"instances: {instances!r:.80} must be a list of mappings with input and output")
    return {name: listed[0].get(name) for name in ("input", "output")}


def has_conversations(columns: Sequence[str]) -> bool:
    """Whether a table with these columns contains conversations in one of the FORMS."""
    names = set(columns)
    pairs = (*PAIRS, ("instruction", "output"), ("instruction", "instances"))
    return bool(names & {"messages", "conversations"}) or any(set(pair) <= names for pair in pairs)


def parse_column(value: object, role: str, column: str) -> Conversation:
    """Returns the turns of a value that is either a text of `role` or a list of messages."""
    if value is None or isinstance(value, str):
        return [Turn(role, value or "")]
    if not isinstance(value, Iterable):
        raise ValueError(f"{column}: {value!r} must be text or a list of messages")
    return parse_messages(value, column)


def _text(value: object, column: str) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column}: {value!s:.80} must be text")
    return value or ""


def jinja_template(tokenizer: Tokenizer, before_markers: bool = False, before_answers: bool = False) -> str:
    """Returns the template as transformers reads it, which encodes a conversation as one text.

    before_markers  whether there is a space in front of a role marker that follows a text, and likewise
    before_answers  in front of answers: for a tokenizer that begins every text with a space, such as SentencePiece
    """
    gaps = {"MARKER": before_markers, "ANSWER": before_answers, "PROMPT": before_markers}
    template = JINJA
    for place, has_gap in gaps.items():
        template = template.replace(place, GAPS[place] if has_gap else "")
    before = "{{ eos_token }}" if tokenizer.begin == tokenizer.eos else tokenizer.separator_texts[0]
    return before + template


@dataclass(frozen=True)
class EncodedConversation:
    """Token ids of a conversation, and True on those of answers, which are the targets."""

    ids: Int[np.ndarray, "time"]
    answers: Bool[np.ndarray, "time"]


def encode_conversations(
    conversations: Sequence[Conversation], tokenizer: Tokenizer, last_only: bool = False
) -> list[EncodedConversation]:
    """Encodes conversations by the template; `last_only` marks only the last of several answers."""
    texts = [text for dialog in conversations for text in _dialog_texts(dialog, tokenizer)]
    ids = iter(tokenizer.encode_many(texts))
    return [
        _continuation(ids, tokenizer) if _is_plain(dialog) else _assemble(dialog, ids, tokenizer, last_only)
        for dialog in conversations
    ]


def encode_prompt(dialog: Conversation, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a conversation up to where the assistant's next answer begins."""
    if _is_plain(dialog):
        return tokenizer.encode_prompt(dialog[0].content.rstrip()) or [tokenizer.begin]
    before = encode_conversations([dialog], tokenizer)[0].ids.tolist()
    marker, text = _opening(Turn("assistant", ""), tokenizer)
    return [*before, *marker, *tokenizer.encode(text)]


def _is_plain(dialog: Conversation) -> bool:
    return bool(dialog) and dialog[0].role == PLAIN


def _dialog_texts(dialog: Conversation, tokenizer: Tokenizer) -> list[str]:
    """Returns the texts of a conversation to encode separately; of a plain text, the prompt and all of it."""
    if _is_plain(dialog):
        return [dialog[0].content.rstrip(), "".join(turn.content for turn in dialog)]
    return [text for turn in dialog for text in _texts(turn, tokenizer)]


def _continuation(ids: Iterator[Integer[np.ndarray, "_"]], tokenizer: Tokenizer) -> EncodedConversation:
    """A plain text, whose tokens from the first that the prompt lacks are the answer; it has no end, as it may be cut.

    A token of the text may join the end of the prompt and the beginning of the answer.
    """
    prompt, whole = next(ids), next(ids)
    length = min(len(prompt), len(whole))
    shared = int(np.cumprod(prompt[:length] == whole[:length]).sum())
    begin = np.array(tokenizer.encode_prompt("") or ([] if shared else [tokenizer.begin]), np.int64)
    marks = np.arange(len(begin) + len(whole)) >= len(begin) + shared
    return EncodedConversation(np.concatenate([begin, whole]).astype(np.int64), marks)


def _texts(turn: Turn, tokenizer: Tokenizer) -> list[str]:
    """Returns the texts of a turn to encode separately: the tokens of an answer must not depend on its surroundings."""
    _, opening = _opening(turn, tokenizer)
    return [opening, turn.content] if turn.role == "assistant" else [opening]


def _opening(turn: Turn, tokenizer: Tokenizer) -> tuple[list[int], str]:
    """Returns the id of the role marker where it is a special token, and the text to encode after it.

    The text contains the marker where it is none, and the content of the turn where it is no answer.
    """
    marker, text = f"<|{turn.role}|>", "\n" if turn.role == "assistant" else f"\n{turn.content}\n"
    if marker not in tokenizer.specials:
        return [], marker + text
    marker_id = tokenizer.specials[marker]
    return [marker_id], text.lstrip() if marker_id in tokenizer.right_stripped else text


def _assemble(
    dialog: Conversation, ids: Iterator[Integer[np.ndarray, "_"]], tokenizer: Tokenizer, last_only: bool
) -> EncodedConversation:
    end = np.array([tokenizer.eos])
    parts = [np.array([tokenizer.begin])]
    marks = [np.zeros(1, bool)]
    last = max((i for i, turn in enumerate(dialog) if turn.role == "assistant"), default=-1)
    for i, turn in enumerate(dialog):
        opening = np.concatenate([np.array(_opening(turn, tokenizer)[0], np.int64), next(ids)])
        parts.append(opening)
        marks.append(np.zeros(len(opening), bool))
        if turn.role == "assistant":
            answer = next(ids)
            parts += [answer, end]
            marks.append(np.full(len(answer) + 1, i == last or not last_only))
    return EncodedConversation(np.concatenate(parts).astype(np.int64), np.concatenate(marks))
