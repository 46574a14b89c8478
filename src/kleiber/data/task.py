"""Tasks of text generation: a prompt and a target by templates over the columns of a table, with several references.

A sample is `prompt target <eos>`, after the tokenizer's begin token where a prompt has one. A space separates prompt
and target, unless the prompt ends with white space. Only the target and <eos> are learned. A row of the training split
with several references is a sample for each; in other splits the first is the target, and evaluations compare with all.
If a prompt leaves no room for the target, the end of its passage is cut, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int, Integer

from kleiber.data.batches import HeldOutRows, text_bytes
from kleiber.data.corpus import EncodedSplit
from kleiber.data.dataset import require_columns, row_batches
from kleiber.data.dataset import rows as rows_of
from kleiber.data.instruct import Conversations, InstructCorpus, PackedConversations
from kleiber.data.overlap import count_shared, hash_documents
from kleiber.data.table import TableData
from kleiber.data.templates import LIST, Template
from kleiber.data.token_files import id_dtype, read_rows
from kleiber.records.arrays import map_array
from kleiber.types import Count, Json, Row
from kleiber.types.contracts import Samples
from kleiber.types.tokenizer import Tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

TARGET, PASSAGE = 1, 2  # marks of tokens


class TaskTexts(NamedTuple):
    """The texts of a sample.

    inputs      texts that the prompt is made of, by their columns
    references  right targets
    """

    inputs: Mapping[str, str]
    references: Sequence[str]


@dataclass(frozen=True)
class Task(TableData):
    """A task of text generation in the table at `path`.

    prompt         template of the prompt, with columns in braces; the entries of a list are lines
    target         template of the target, or several; each entry of a list in it is a reference
    passage        column of the prompt whose end is cut where the prompt is too long; null: such a prompt is refused
    target_tokens  tokens of the context that are kept for the target; null: those of the longest training target, at
                   most half of the context
    pack           true: as many samples to a row as fit; false: one sample to a row, with padding
    examples       whether reports may show rows; false where the terms of the data do not permit that
    verifier       name of the reward that verifies answers (objective.reward); null: none
    max_bytes      at most that much text of each split
    """

    prompt: str = ""
    target: str | Sequence[str] = ""
    passage: str | None = None
    target_tokens: Count | None = None
    pack: bool = True
    examples: bool = True
    verifier: str | None = None

    def __post_init__(self) -> None:
        templates = [self.prompt_template, *self.target_templates]
        if not templates[1:]:
            raise ValueError("data.target=[] must have at least one template")
        if self.passage is not None and self.passage not in self.prompt_template.fields:
            raise ValueError(
                f"data.passage={self.passage} must be a column of data.prompt={self.prompt}: "
                f"{', '.join(self.prompt_template.fields)}"
            )

    @cached_property
    def prompt_template(self) -> Template:
        return Template.parse("data.prompt", self.prompt)

    @cached_property
    def target_templates(self) -> list[Template]:
        texts = [self.target] if isinstance(self.target, str) else self.target
        return [Template.parse("data.target", text) for text in texts]

    def identity(self) -> list[object]:
        targets = [template.pieces for template in self.target_templates]
        return ["task", self.prompt_template.pieces, targets, self.passage]

    def check_columns(self, table: Dataset, name: str) -> None:
        for template in (self.prompt_template, *self.target_templates):
            require_columns(table, template.columns, name, template.key)

    def texts(self, row: Row) -> list[str]:
        sample = self.read(row)
        return [sample.prompt, *sample.references]

    def prompt_texts(self, row: Row) -> list[str]:
        return [self.read(row).prompt]

    def read(self, row: Row) -> TaskSample:
        """Returns the texts of a row. Raises ValueError for a row without a target that is not empty."""
        inputs = {field: LIST.join(texts) for field, texts in self.prompt_template.values(row).items()}
        references = [text.strip() for template in self.target_templates for text in template.fill_each(row)]
        references = [*dict.fromkeys(filter(None, references))]
        if not references:
            raise ValueError(f"data.target={self.target} is empty: correct or remove the row")
        return self.sample(inputs, references)

    def sample(self, inputs: Mapping[str, str], references: Sequence[str]) -> TaskSample:
        """Returns the sample of the texts of the prompt's fields, and of right targets."""
        prompt = self.prompt_template.fill(inputs)
        before, after = (prompt, "") if self.passage is None else self.prompt_template.fill_around(self.passage, inputs)
        return TaskSample(prompt, len(before.encode()), len(after.encode()), inputs, references)

    def prompt_ids(self, inputs: Mapping[str, str], tokenizer: Tokenizer, room: int) -> list[int]:
        """Returns the token ids of a prompt, whose passage is cut to leave at most `room`.

        Raises ValueError where the prompt without its passage is longer.
        """
        sample, begin = self.sample(inputs, ()), tokenizer.encode_prompt("")
        ids = np.array(tokenizer.encode(sample.prompt), np.int64)
        cut = max(0, len(begin) + len(ids) - room)
        place = passage_tokens(tokenizer, ids, sample)
        if cut > place.stop - place.start:
            raise ValueError(f"the prompt {sample.prompt[:40]!r}... has more than {room} tokens without its passage")
        return [*begin, *ids[: place.stop - cut].tolist(), *ids[place.stop :].tolist()]

    def encode(self, splits: dict[str, Dataset], tokenizer: Tokenizer) -> Iterator[EncodedSplit]:
        """Yields the rows of each split, with how many of its prompts are training prompts too."""
        hashes = {
            name: hash_documents([self.read(row).prompt] for row in rows_of(split)) for name, split in splits.items()
        }
        for name, split in splits.items():
            encoded = self._encode(split, tokenizer, every_reference=name == "train")
            if name != "train":
                encoded.counts["shared"] = count_shared(hashes["train"], hashes[name])
            yield encoded

    def _encode(self, split: Dataset, tokenizer: Tokenizer, every_reference: bool) -> EncodedSplit:
        """Encodes the samples of a split; a row is one sample, or one for each of its references."""
        encoder = _Encoder(tokenizer)
        row_numbers: list[int] = []
        texts: list[Integer[np.ndarray, "_"]] = []
        number = 0
        for batch in row_batches(split):
            samples = []
            for row in batch:
                sample = self.read(row)
                chosen = sample.references if every_reference else sample.references[:1]
                samples += [(sample, reference) for reference in chosen]
                row_numbers += [number] * len(chosen)
                number += 1
            encoder.add(samples)
            for sample, reference in samples:
                references = [reference] if every_reference else sample.references
                content = json.dumps([sample.inputs, references], ensure_ascii=False)
                texts.append(np.frombuffer(content.encode(), np.uint8))
        arrays = {"rows": np.array(row_numbers, np.int64)}
        counts = {"rows": len(split), "longest_target": encoder.longest_target}
        return EncodedSplit(encoder.ids, counts, encoder.marks, arrays, texts=texts)

    def prepare(self, context: int, cache: Path | None = None) -> InstructCorpus:
        """Returns the corpus of encoded samples, and encodes the rows that are not in the cache.

        Raises ValueError for a prompt that does not fit in the context and has no passage to cut.
        """
        encoded = self.load(cache)
        longest = encoded.manifest["splits"]["train"]["longest_target"]
        kept = self.target_tokens or max(1, min(longest, context // 2))
        if kept >= context:
            raise ValueError(f"data.target_tokens={kept} must be < model.context={context}: a prompt needs room")
        samples = encoded.samples(lambda path: TaskRows(self, path, context, encoded.tokenizer, kept))
        for split in samples.values():
            split.training = samples["train"]
        train: Samples = PackedConversations(samples["train"]) if self.pack else samples["train"]
        answers = samples["train"].num_answers
        identity = [self.pack, kept, encoded.checksums]
        return encoded.corpus(InstructCorpus, samples, identity, train, num_answers=answers, verifier=self.verifier)


@dataclass(frozen=True)
class TaskSample:
    """The texts of a row.

    before, after  bytes of the prompt in front of its passage, and behind it; all of it without a passage
    inputs         texts of the fields of the prompt
    """

    prompt: str
    before: int
    after: int
    inputs: Mapping[str, str]
    references: Sequence[str]


class _Encoder:
    """Collects the token ids and marks of samples."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.begin = tokenizer, tokenizer.encode_prompt("")
        self.dtype, self.longest_target = id_dtype(tokenizer.vocab_size), 0
        self.ids: list[Integer[np.ndarray, "_"]] = []
        self.marks: list[Integer[np.ndarray, "_"]] = []

    def add(self, samples: Sequence[tuple[TaskSample, str]]) -> None:
        """Encodes samples, each a row and one of its references.

        The target has the ids that it has behind the prompt, as a tokenizer may join a space and a word.
        """
        wholes = [join_target(sample.prompt, reference) for sample, reference in samples]
        prompts = [sample.prompt for sample, _ in samples]
        distinct = list(dict.fromkeys([*prompts, *wholes]))
        encoded = dict(zip(distinct, self.tokenizer.encode_many(distinct), strict=True))
        for (sample, _), whole in zip(samples, wholes, strict=True):
            prompt, target = encoded[sample.prompt], encoded[whole]
            if np.array_equal(target[: len(prompt)], prompt):
                target = target[len(prompt) :]
            else:  # the tokenizer joins the last letter of the prompt with the target
                target = np.array(self.tokenizer.encode(whole[len(sample.prompt) :]))
            marks = np.zeros(len(prompt), np.uint8)
            marks[passage_tokens(self.tokenizer, prompt, sample)] = PASSAGE
            target_marks = np.full(len(target) + 1, TARGET, np.uint8)
            self.ids.append(np.concatenate([self.begin, prompt, target, [self.tokenizer.eos]]).astype(self.dtype))
            self.marks.append(np.concatenate([np.zeros(len(self.begin), np.uint8), marks, target_marks]))
            self.longest_target = max(self.longest_target, len(target_marks))


def passage_tokens(tokenizer: Tokenizer, prompt: Integer[np.ndarray, "_"], sample: TaskSample) -> slice:
    """Returns the place of the tokens whose bytes are all of the passage; of a lossy tokenizer about those."""
    sizes = tokenizer.token_bytes[prompt]
    ends = np.cumsum(sizes)
    first = int(np.searchsorted(ends - sizes, sample.before))
    behind = np.cumsum(sizes[::-1])
    last = len(prompt) - int(np.searchsorted(behind - sizes[::-1], sample.after))
    return slice(first, max(first, last))


def join_target(prompt: str, target: str) -> str:
    """Returns a prompt with its target, and a space between them where the prompt does not end with white space."""
    return prompt + ("" if prompt[-1:].isspace() else " ") + target


class TaskRows(Conversations):
    """Samples one to a row, of at most context + 1 tokens.

    task      settings of the data
    kept      tokens of the context that are kept for the target
    training  samples of the training split

    Raises ValueError for a prompt that does not fit in the rest of the context without its passage.
    """

    training: TaskRows

    def __init__(self, task: Task, path: Path, context: int, tokenizer: Tokenizer, kept: int) -> None:
        self.task, self.context, self.kept, self.eos = task, context, kept, tokenizer.eos
        self.ids = read_rows(path, id_dtype(tokenizer.vocab_size))
        self.marks = read_rows(path.with_name(f"{path.name}-answers"), np.dtype(np.uint8))
        self.texts = read_rows(path.with_name(f"{path.name}-texts"), np.dtype(np.uint8))
        whole = self.ids.lengths
        self.targets, passages = (self._count(mark) for mark in (TARGET, PASSAGE))
        self.prompts = whole - self.targets
        self.cut = np.maximum(0, self.prompts - (context - kept))
        refused = np.flatnonzero(self.cut > passages)
        if len(refused):
            self._refuse(int(refused[0]), path, tokenizer)
        self.lengths = np.minimum(whole - self.cut, context + 1)
        self.row_numbers = np.arange(len(whole))
        self.targets_cut = int((self.lengths < whole - self.cut).sum())
        self.num_answers = int((self.lengths - self.prompts + self.cut).sum())
        self.truncated = int((self.cut > 0).sum())
        self.share_cut = float(self.cut.sum() / max(1, passages.sum()))
        self.sizes = text_bytes(self.ids.starts[:-1], whole, self.ids.flat, tokenizer)
        for i in np.flatnonzero(self.lengths < whole).tolist():
            self.sizes[i] = tokenizer.token_bytes[self.row(i)[0]].sum()
        self.count_tokens()

    def _count(self, mark: int) -> Int[np.ndarray, "rows"]:
        total = np.concatenate([[0], np.cumsum(np.asarray(self.marks.flat) == mark)])
        return total[self.marks.starts[1:]] - total[self.marks.starts[:-1]]

    def _refuse(self, i: int, path: Path, tokenizer: Tokenizer) -> None:
        number = int(map_array(path.with_suffix(".rows.npy"))[i])
        prompt, room = tokenizer.decode(self.ids[i][: self.prompts[i]].tolist()), self.context - self.kept
        raise ValueError(
            f"data.path={self.task.path}, {path.name} row {number} ({prompt[:40]!r}...): the prompt has "
            f"{self.prompts[i]} tokens, more than the {room} that model.context={self.context} leaves besides "
            f"{self.kept} for the target: raise model.context, or set data.passage to a column of the prompt that may "
            "be cut"
        )

    def row(self, i: int) -> tuple[Int[np.ndarray, "time"], Int[np.ndarray, "time"]]:
        """Returns the ids of sample i, and 1 on those of the target."""
        ids, marks = self.ids[i].astype(np.int64), self.marks[i].astype(np.int64)
        if self.cut[i]:
            end = int(np.flatnonzero(marks == PASSAGE)[-1]) + 1
            kept = np.r_[0 : end - self.cut[i], end : len(ids)]
            ids, marks = ids[kept], marks[kept]
        return ids[: self.lengths[i]], (marks == TARGET).astype(np.int64)[: self.lengths[i]]

    def question(self, i: int) -> tuple[list[int], list[int]]:
        """Returns the ids of the prompt of sample i, and those of its target without eos."""
        ids, marks = self.row(i)
        target = ids[marks == 1].tolist()
        return ids[marks == 0].tolist(), target[:-1] if target[-1:] == [self.eos] else target

    def columns(self, i: int) -> Row:
        """The columns of the prompt, and the references; the first of them is the answer."""
        texts = self.texts_of(i)
        return {**texts.inputs, "references": [*texts.references], "answer": texts.references[0]}

    def texts_of(self, i: int | np.integer) -> TaskTexts:
        """Returns the texts of sample i."""
        return TaskTexts(*json.loads(self.texts[int(i)].tobytes()))

    def describe(self, counts: Json) -> str:
        """Returns the numbers of samples and tokens, what was cut, and how many prompts are training prompts too."""
        if not len(self):
            return "no rows"
        cut = f"{self.truncated:,} passages cut to model.context={self.context} ({self.share_cut:.2g} of their tokens)"
        return (
            f"{len(self):,} samples of {counts['rows']:,} rows, {self.num_tokens:,} tokens of which "
            f"{self.num_answers:,} are targets; prompts of {self.prompts.mean():.0f} tokens (at most "
            f"{self.prompts.max()}), targets of {self.targets.mean():.0f} (at most {self.targets.max()})"
            + (f"; {cut}" if self.truncated else "")
            + (f"; the end of {self.targets_cut:,} targets cut" if self.targets_cut else "")
            + (f"; {_describe_shared(counts['shared'])}" if "shared" in counts else "")
        )

    def explain_empty(self, split: str) -> str:
        return f"the {split} split has no rows"


def task_rows(samples: Samples) -> tuple[TaskRows, Int[np.ndarray, "_"]] | None:
    """Returns the rows of held-out samples of a task and their order; None for samples of other data."""
    if isinstance(samples, HeldOutRows) and isinstance(samples.samples, TaskRows):
        return samples.samples, samples.order
    return None


def _describe_shared(shared: Json) -> str:
    return (
        f"{shared['exact']:,} prompts are training prompts too, {shared['normalized']:,} "
        f"({100 * shared['normalized'] / max(1, shared['documents']):.3g}%) if case and white space are ignored"
    )
