"""Text that a trained model continues: a prompt, or a conversation with its turns remembered.

Pieces of text are yielded as soon as they are certain: a character whose bytes are complete, and that cannot be the
beginning of a stop text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from kleiber.config.extensions import import_offer
from kleiber.data.chat import Conversation, Turn, encode_prompt
from kleiber.models.generation import continuations, generate, stream
from kleiber.records.files import read_json
from kleiber.records.progress import activity
from kleiber.runs.chat_template import render
from kleiber.types import Json, Natural, NonNegative, Positive, Seed, Width
from kleiber.types.model import Adjust, Model, device_of
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kleiber.runs.open import TrainedModel

SCHEMA = "kleiber.generate/1"
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes the first bytes of a character to


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    tokens       most tokens of a continuation
    temperature  0 takes the most probable token
    top_p        keeps the smallest set of tokens whose probability reaches it (Holtzman et al. 2019, arXiv:1904.09751)
    stop         texts that end the continuation, and are not part of it
    seed         of the draws
    beams        continuations that beam search keeps; 1 for none

    Raises ValueError for beam search together with sampling.
    """

    tokens: Natural = 64
    temperature: NonNegative = 1.0
    top_p: Positive = 1.0
    stop: tuple[str, ...] = ()
    seed: Seed = 0
    beams: Width = 1

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ValueError(f"--beams {self.beams} must be >= 1")
        if self.beams > 1 and (self.temperature > 0 or self.top_p < 1):
            raise ValueError(
                f"--beams {self.beams} searches for the most probable text, and --temperature {self.temperature:g} "
                f"with --top-p {self.top_p:g} samples: remove one of them"
            )


class Continuation:
    """Iterates over the pieces of text that follow a prompt; afterwards `text` is all of it.

    ids    token ids of the continuation, without the end-of-text token
    ended  why it ended: "eos", "stop" or "length"; None before the end
    adjust changes the logits of each token (see `stream`)

    Raises ValueError for a model that is not causal, and for settings that `generate` refuses.
    """

    def __init__(
        self, run: TrainedModel, prompt_ids: Sequence[int], sampling: Sampling, adjust: Adjust | None = None
    ) -> None:
        self.prompt_ids, self.sampling, self.tokenizer = list(prompt_ids), sampling, run.tokenizer
        self.ids: list[int] = []
        self.text = ""
        self.ended: str | None = None
        if sampling.beams > 1:
            self.drawn = iter(self._search(run.model, adjust))
            return
        device = device_of(run.model)
        prompt, generator = torch.tensor([self.prompt_ids], device=device), torch.Generator(device)
        self.drawn = stream(
            run.model, prompt, sampling.tokens, sampling.temperature, top_p=sampling.top_p,
            generator=generator.manual_seed(sampling.seed), eos=run.tokenizer.eos, adjust=adjust,
        )  # fmt: skip

    def _search(self, model: Model, adjust: Adjust | None) -> list[Tensor]:
        """The tokens that beam search finds, with the one that ends the text."""
        if adjust is not None:
            raise ValueError(f"--beams {self.sampling.beams} does not work with --retrieval knn: remove one of them")
        length, stops = len(self.tokenizer.decode(self.prompt_ids)), self.sampling.stop
        (ids,) = continuations(
            model, [self.prompt_ids], self.sampling.tokens, self.tokenizer.eos, beams=self.sampling.beams,
            stop=lambda ids: any(text in self.tokenizer.decode([*self.prompt_ids, *ids])[length:] for text in stops),
        )  # fmt: skip
        return list(torch.tensor([*ids, self.tokenizer.eos][: self.sampling.tokens]))

    def __iter__(self) -> Iterator[str]:
        before = len(self.tokenizer.decode(self.prompt_ids))
        for token in self.drawn:
            if int(token) == self.tokenizer.eos:
                self.ended = "eos"
                break
            self.ids.append(int(token))
            # With the prompt, because a tokenizer may leave out the space in front of the first word.
            text = self.tokenizer.decode([*self.prompt_ids, *self.ids])[before:]
            places = [text.find(ending) for ending in self.sampling.stop if ending in text]
            if places:
                self.ended = "stop"
                yield from self._advance(text[: min(places)])
                return
            yield from self._advance(text[: certain_length(text, self.sampling.stop)])
        self.ended = self.ended or "length"
        yield from self._advance(self.tokenizer.decode([*self.prompt_ids, *self.ids])[before:])

    def _advance(self, text: str) -> Iterator[str]:
        """Yields what `text` adds to the text so far, if anything."""
        piece, self.text = text[len(self.text) :], text
        if piece:
            yield piece


def certain_length(text: str, stop: Sequence[str]) -> int:
    """Returns how much of a text cannot change or become part of a stop text when more tokens follow."""
    length = len(text.rstrip(INCOMPLETE))
    for ending in stop:
        for size in range(min(len(ending) - 1, length), 0, -1):
            if text[:length].endswith(ending[:size]):
                length -= size
                break
    return length


@runtime_checkable
class Lookup(Protocol):
    """Text that a model looks things up in while it generates; extensions offer methods under LOOKUPS."""

    def augment(self, model: Model, tokenizer: Tokenizer, ids: list[int]) -> tuple[list[int], Adjust | None]:
        """The ids of a prompt as the model is given them, and what changes the logits of each token (see `stream`)."""
        ...


def open_lookup(store: Sequence[str], method: str) -> Lookup | None:
    """Returns the lookup in text by name or path; None where no text is named. Raises ValueError for another method."""
    if not store:
        return None
    lookup = import_offer("LOOKUPS", method, f"retrieval={method}")(store, method)
    assert isinstance(lookup, Lookup), f"an offer of LOOKUPS must have augment, and {lookup!r} has none"
    return lookup


def continue_prompt(run: TrainedModel, prompt: str, sampling: Sampling, lookup: Lookup | None = None) -> Continuation:
    """Returns the continuation of a prompt, which the tokenizer's begin token precedes where documents have one.

    lookup  a datastore whose text stands in front of the prompt, or whose neighbors are mixed into the predictions
    """
    ids = run.tokenizer.encode_prompt(prompt) or [run.tokenizer.begin]
    adjust = None
    if lookup is not None:
        ids, adjust = lookup.augment(run.model, run.tokenizer, ids)
    return Continuation(run, ids, sampling, adjust)


def to_json(subject: Path, prompt: str, continuation: Continuation, seconds: float) -> Json:
    """Returns the content of the file of `kleiber generate --json`."""
    return {
        "schema": SCHEMA, "subject": str(subject), "prompt": prompt, "text": continuation.text,
        "ended": continuation.ended, "prompt_tokens": len(continuation.prompt_ids), "tokens": len(continuation.ids),
        "seconds": seconds, "sampling": asdict(continuation.sampling),
    }  # fmt: skip


class Chat:
    """A conversation with a model, whose turns are remembered.

    The template is that of the tokenizer of a Hugging Face folder, and kleiber's (`data/chat.py`) for a run. When the
    conversation and its answer no longer fit into the context, the oldest turns after the system prompt are left out.
    """

    def __init__(self, run: TrainedModel, sampling: Sampling, system: str | None = None) -> None:
        self.run, self.sampling = run, sampling
        self.turns: Conversation = [] if system is None else [Turn("system", system)]
        self.kept = len(self.turns)
        self.answers = 0
        self.encode = encoder(run)

    def answer(self, text: str) -> Continuation:
        """Returns the answer to a message. `remember` adds it to the conversation when it has been iterated over."""
        self.turns.append(Turn("user", text))
        room = self.run.model.context - self.sampling.tokens
        ids = self.encode(self.turns)
        while len(ids) > room and len(self.turns) > self.kept + 1:
            del self.turns[self.kept]
            ids = self.encode(self.turns)
        sampling = Sampling(**{**asdict(self.sampling), "seed": self.sampling.seed + self.answers})
        self.answers += 1
        return Continuation(self.run, ids, sampling)

    def remember(self, answer: Continuation) -> None:
        """Adds an answer to the conversation."""
        self.turns.append(Turn("assistant", answer.text))


def encoder(run: TrainedModel) -> Callable[[Conversation], list[int]]:
    """Returns the function that turns a conversation into the ids of a prompt for its next answer."""
    if run.config or not has_chat_template(run.folder):
        return lambda turns: encode_prompt(turns, run.tokenizer)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.folder, trust_remote_code=False)

    def encode(turns: Conversation) -> list[int]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        template = partial(tokenizer.apply_chat_template, messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(render(template, run.folder), add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    return encode


def has_chat_template(folder: Path) -> bool:
    """Whether a Hugging Face folder has a chat template: in a file of its own, or in tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (file.is_file() and "chat_template" in read_json(file))


def chat_loop(chat: Chat, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Answers each line that `read` returns, until it raises EOFError. `/reset` forgets the conversation."""
    while True:
        try:
            text = read()
        except EOFError:
            return
        if text.strip() == "/reset":
            del chat.turns[chat.kept :]
            continue
        if not text.strip():
            continue
        answer = chat.answer(text)
        for piece in answer:
            write(piece)
        write("\n")
        chat.remember(answer)


def write_streams(
    run: TrainedModel, rows: int, tokens: int, temperature: float, seed: int
) -> Int[Tensor, "rows tokens"]:
    """Token ids that a model writes from the beginning of a document on, also beyond its context.

    rows, tokens  number of independent streams, and tokens of each, with the begin token

    Raises ValueError for a model that is not causal.
    """
    prompts = torch.full((rows, 1), run.tokenizer.begin)
    with activity(f"{run.folder.name} writes {rows * tokens:,} tokens"):
        return generate(run.model, prompts, tokens - 1, temperature, generator=torch.Generator().manual_seed(seed))
