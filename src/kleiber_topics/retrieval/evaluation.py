"""The evaluation `retrieval`: what a datastore adds, by nearest neighbors or by text in front of the prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

import numpy as np
import torch
from annotated_types import Ge, Lt, MinLen
from jaxtyping import Bool, Int

from kleiber.config import Quantity, quantity
from kleiber.data import DataSet
from kleiber.evals import Evaluation, Results, Subject, pass_tokens, proportion_score
from kleiber.records import format_bytes
from kleiber.types import (
    Count,
    DataPath,
    Json,
    Metric,
    Metrics,
    Model,
    Positive,
    Score,
    Scores,
    Seed,
    Tokenizer,
    variants,
)
from kleiber_topics.retrieval import in_context, knn
from kleiber_topics.retrieval.datastore import (
    Hashes,
    StoreText,
    choose_windows,
    cut_chunks,
    evaluated_hashes,
    n_gram_hashes,
    overlap,
    read_sizes,
    store_samples,
)
from kleiber_topics.retrieval.items import TOKENS, Items, answer_columns, read_items, scores_of, share_with_answer
from kleiber_topics.retrieval.knn import Retrieved, Setting, most_probable
from kleiber_topics.retrieval.neighbors import nearest_by_size
from kleiber_topics.retrieval.scoring import Targets, check_key, score_rows

if TYPE_CHECKING:
    from altair import TopLevelMixin

Weight = Annotated[float, Ge(0), Lt(1)]
Method = Literal["knn", "bm25", "dense"]
OVERLAP = 64  # tokens that count as contamination where no window is left out
SIZED = {"*": "", "tokens{size}/*": " and {size} stored tokens", "interpolation{weight}/*": " at weight {weight}"}
SCORES = {  # also of each method, size of the store and weight
    "loss": Metric("loss", "lower", "nats per token"),
    "bits_per_byte": Metric("bits per byte", "lower", "bits per byte"),
    "exact_match": Metric("exact match", "higher"),
    "log_prob": Metric("log-probability of the answer", "higher", "nats"),
    "difference": Metric("difference from no retrieval", "none"),
    "answer_retrieved": Metric("share of rows whose retrieved text has the answer", "higher"),
    "interpolation": Metric("weight of the neighbors", "none"),
    "temperature": Metric("temperature of the distances", "none"),
    "store_bytes": Metric("size of the datastore", "lower", "bytes"),
    "store_seconds": Metric("time to build the datastore", "lower", "s"),
    "seconds_per_token": Metric("time of a target", "lower", "s"),
    "contamination": Metric("share of samples in the datastore", "lower"),
}
EXAMPLES = 4  # of each data set and method
TAIL = 160  # characters of a prompt and of a retrieved text that are shown

Decode = Callable[[list[int]], str]


@dataclass
class Measured:
    """A data set with the scores of its targets without retrieval.

    seconds    for a target, without retrieval
    on_report  which of the items are reported; the settings of kNN-LM are chosen on the others
    """

    items: Items
    plain: Targets
    seconds: float
    on_report: Bool[np.ndarray, "rows"]
    scores: Scores = field(default_factory=dict)
    examples: list[Json] = field(default_factory=list)

    @property
    def reported(self) -> Bool[np.ndarray, "tokens"]:
        """Which of the targets are reported."""
        return self.on_report[self.plain.items]

    def add(self, method: str, scores: Scores, text: StoreText, size: int) -> None:
        """Adds the scores of a method at a size of the store, those at the largest also under its name alone."""
        if size == len(text.sizes) - 1:
            self.scores |= {f"{method}/{name}": score for name, score in scores.items()}
        if len(text.sizes) > 1:
            self.scores |= {f"{method}/tokens{text.sizes[size]}/{name}": score for name, score in scores.items()}

    def add_contamination(self, length: int, shared: Hashes) -> None:
        """Adds the share of the samples of a text that have an n-gram of `length` tokens among the sorted hashes."""
        flags = np.zeros(self.items.count, bool)
        for row in self.items.rows:
            flags[row.item] |= len(overlap(n_gram_hashes(row.ids, length), shared)) > 0
        self.scores["contamination"] = proportion_score(flags)


def knn_scores(model: Model, part: Measured, targets: Retrieved, setting: Setting) -> Scores:
    """The scores of a data set under kNN-LM."""
    log_probs, greedy = targets.mixed(setting.interpolation, setting.temperature), None
    if part.items.is_table:
        greedy = most_probable(part.plain.hidden, model.head, targets, setting) == targets.ids
    return scores_of(part.items, part.plain, log_probs, greedy, part.reported, part.plain)


def add_examples(
    part: Measured,
    method: str,
    texts: Sequence[Int[np.ndarray, "_"]],
    log_probs: torch.Tensor,
    decode: Decode,
) -> None:
    """Adds a few pieces with the text that was retrieved for them, at equal distances among those with any."""
    with_text = [i for i, text in enumerate(texts) if len(text)]
    for i in with_text[:: max(1, len(with_text) // EXAMPLES)][:EXAMPLES]:
        piece = part.items.pieces[i]
        row = part.items.rows[piece.row]
        begin = sum(int(other.scored.sum()) for other in part.items.rows[: piece.row])
        before = int(row.scored[: piece.start].sum())
        at = slice(begin + before, begin + before + int(row.scored[piece.start : piece.stop].sum()))
        part.examples.append(
            {
                "method": method,
                "before": decode(row.ids[: piece.start].tolist())[-TAIL:],
                "target": decode(row.ids[piece.start : piece.stop].tolist())[:TAIL],
                "retrieved": decode(texts[i].tolist())[:TAIL],
                "nats": -float(part.plain.log_probs[at].sum()),
                "nats_with": -float(log_probs[at].sum()),
            }
        )


def store_scores(num_bytes: int, built: float, seconds: float) -> Scores:
    """The costs of a datastore: its bytes, the seconds to build it, and the seconds for a target."""
    return {
        "store_bytes": Score(float(num_bytes)),
        "store_seconds": Score(built),
        "seconds_per_token": Score(seconds),
    }


class Retrieval(Evaluation):
    """What a datastore adds: kNN-LM (`knn`), and text in front, found by BM25 (`bm25`) or by mean states (`dense`).

    Without retrieval: `loss` and `bits_per_byte` of a text; `exact_match` and `log_prob` of a table of prompts and
    answers (columns prompt or question, and answer), where exact_match is 1 if greedy decoding gives the whole answer.
    The same follow for each method, as `knn/loss`, with

    difference         of loss or exact_match from that without retrieval, paired by sample or row
    store_bytes        of the datastore, and store_seconds to build it
    seconds_per_token  of the targets, model included
    answer_retrieved   share of the rows of a table whose retrieved text contains the answer
    interpolation, temperature  of `knn`

    and for each size of the store, where there are several, as `knn/tokens65536/loss`; the others are of the largest.
    `contamination` is the share of the samples of a text that overlap with the text of the datastore.

    methods            "knn", "bm25", "dense"
    store              names or paths of text, whose training split is read; null: the training text of the run
    tokens             of each text that are scored, whatever eval.tokens is; null: eval.tokens, or 16K without it
    sizes              tokens of the datastore, in ascending order: windows of its text, drawn at random
    memory             bytes up to which the datastore of `knn` is in memory; a larger one is mapped from a file
    exclude_overlap    windows of the store with this many consecutive tokens of the evaluated text are left out; null:
                       none is
    key                by which `knn` looks for neighbors: the last hidden state, "hidden", or the input of the last
                       layer's feed-forward part, "ffn", as in the paper
    neighbors          of each target
    interpolation      weight of the neighbors; null: chosen on the first half of the samples, and the others reported
    temperature        of the squared distances; null: chosen, likewise
    shared_setting     whether interpolation and temperature are chosen once for all data sets, which count alike
    interpolations     further weights at which `knn` is scored, as `knn/interpolation0.5/loss`
    search             "torch" or "faiss", exact
    chunk_tokens       longest piece of a document; null: a quarter of model.context, at most 256
    chunks             that stand in front of the text
    query_tokens       last tokens of the text, by which chunks are looked for; a prompt is used as a whole
    stride             targets of a text between two retrievals; null: a quarter of model.context
    between            text behind each chunk
    seed               of the choice of the store's windows
    data               names or paths of data; null: those of the command or of the run
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        **SCORES,
        **{
            key: metric
            for method in get_args(Method)  # by name, since {method} would also match the last part of the data's name
            for pattern, label in SIZED.items()
            for key, metric in variants(SCORES, f"{method}/{pattern}", f"* with {method}{label}").items()
        },
    }
    reads = "text, in a column text, or a table with the columns prompt or question, and answer"

    def __init__(
        self,
        methods: Annotated[Sequence[Method], MinLen(1)] = ("knn", "bm25"),
        store: Sequence[DataPath] | None = None,
        tokens: Quantity | None = None,
        sizes: Annotated[Sequence[Quantity], MinLen(1)] = ("16K", "64K", "256K"),
        memory: Quantity = "2G",
        exclude_overlap: Count | None = 64,
        key: Literal["hidden", "ffn"] = "hidden",
        neighbors: Count = 32,
        interpolation: Weight | None = None,
        temperature: Positive | None = None,
        shared_setting: bool = False,
        interpolations: Sequence[Weight] = (),
        search: Literal["torch", "faiss"] = "torch",
        chunk_tokens: Count | None = None,
        chunks: Count = 1,
        query_tokens: Count = 32,
        stride: Count | None = None,
        between: str = "\n",
        seed: Seed = 0,
        data: Sequence[DataPath] | None = None,
    ) -> None:
        self.methods, self.store, self.data = list(dict.fromkeys(methods)), store, data
        self.tokens = None if tokens is None else round(quantity(tokens))
        self.sizes, self.memory, self.exclude_overlap = read_sizes(sizes), round(quantity(memory)), exclude_overlap
        self.key, self.neighbors, self.search = key, neighbors, search
        self.interpolation, self.temperature = interpolation, temperature
        self.shared_setting, self.interpolations = shared_setting, tuple(interpolations)
        self.chunk_tokens, self.chunks, self.query_tokens = chunk_tokens, chunks, query_tokens
        self.stride, self.between, self.seed = stride, between, seed

    def accepts(self, data: DataSet) -> bool:
        """Whether the data set is text, or a table of prompts and answers."""
        return answer_columns(data) is not None or super().accepts(data)

    def check(self, model: Model) -> None:
        """Raises ValueError for a key that the model does not have, and for chunks that leave no room for text."""
        check_key(model, self.key)
        self.retrieved_tokens(model, min(1, len(self.between)))

    def retrieved_tokens(self, model: Model, between: int) -> int:
        """Most tokens of retrieved text, of which `between` stand behind each chunk; 0 for nearest neighbors alone.

        Raises ValueError where they leave no room for `stride` targets.
        """
        length, stride = self.lengths(model)
        if not {"bm25", "dense"} & set(self.methods):
            return 0
        retrieved = self.chunks * (length + between)
        if retrieved + stride > model.context:
            raise ValueError(
                f"evals.retrieval.chunks={self.chunks} of chunk_tokens={length}, each with between={self.between!r} "
                f"behind it, and stride={stride} must fit into model.context={model.context} together: make one of "
                "them smaller"
            )
        return retrieved

    def lengths(self, model: Model) -> tuple[int, int]:
        """Tokens of a chunk, and targets between two retrievals."""
        quarter = max(1, model.context // 4)
        return self.chunk_tokens or min(quarter, 256), self.stride or quarter

    def evaluate(self, subject: Subject) -> Results:
        """Scores each data set without and with every method.

        Raises ValueError for a datastore without text, for one that faiss cannot hold in `memory` or the disk cannot
        hold, and for an answer that does not fit into the context behind the chunks.
        """
        samples = store_samples(subject, self.store, subject.model.context)
        self.require_memory(min(self.sizes[-1], samples.num_tokens), subject.model.width)
        sets = [self.measure_plain(subject, data) for data in subject.data]
        length = min(self.exclude_overlap or OVERLAP, (subject.model.context + 1) // 2)
        texts = [part for part in sets if not part.items.is_table]
        evaluated = evaluated_hashes([row for part in texts for row in part.items.rows], length)
        exclude = self.exclude_overlap is not None
        text = choose_windows(samples, self.sizes, length, evaluated, exclude, self.seed)
        for part in texts:
            part.add_contamination(length, text.shared)
        for method in self.methods:
            if method == "knn":
                self.add_knn(subject, sets, text)
            else:
                self.add_in_context(subject, sets, text, method)
        details = {
            "sizes": [{"asked": size, "tokens": text.tokens(i)} for i, size in enumerate(text.sizes)],
            "left_out": text.left_out,
            "examples": {part.items.name: part.examples for part in sets},
        }
        return Results({part.items.name: part.scores for part in sets}, details)

    def require_memory(self, tokens: int, width: int) -> None:
        """Raises ValueError for a datastore of kNN-LM that is larger than `memory`, which faiss would copy."""
        needed = tokens * knn.entry_bytes(width)
        if "knn" in self.methods and self.search == "faiss" and needed > self.memory:
            raise ValueError(
                f"evals.retrieval.sizes={self.sizes}: {tokens:,} tokens with keys of {width} channels take "
                f"{format_bytes(needed)}, and evals.retrieval.memory is {format_bytes(self.memory)}: set "
                "evals.retrieval.search=torch, which maps a larger datastore from a file, or use fewer tokens"
            )

    def measure_plain(self, subject: Subject, data: DataSet) -> Measured:
        """Scores a data set without retrieval."""
        retrieved = self.retrieved_tokens(subject.model, len(subject.tokenizer.encode(self.between)))
        scored = self.tokens or subject.tokens or TOKENS
        items = read_items(subject, data, self.lengths(subject.model)[1], self.query_tokens, retrieved, scored)
        tokens, begin = pass_tokens(subject.model, subject.rows), time.perf_counter()
        plain = score_rows(subject.model, items.rows, tokens, self.key, f"scoring {items.name}")
        seconds = (time.perf_counter() - begin) / len(plain.ids)
        chooses = "knn" in self.methods and None in (self.interpolation, self.temperature)
        on_report = np.arange(items.count) >= (items.count // 2 if chooses else 0)
        part = Measured(items, plain, seconds, on_report)
        part.scores |= scores_of(items, plain, plain.log_probs, plain.greedy, part.reported)
        part.scores["seconds_per_token"] = Score(seconds)
        return part

    def add_knn(self, subject: Subject, sets: Sequence[Measured], text: StoreText) -> None:
        """Adds the scores of kNN-LM at every size of the store."""
        tokens, begin = pass_tokens(subject.model, subject.rows), time.perf_counter()
        size_text = format_bytes(text.tokens(-1) * knn.entry_bytes(subject.model.width))
        label = f"computing a datastore of {size_text}"
        store = knn.build_datastore(subject.model, text.windows, text.ends, self.key, tokens, label, memory=self.memory)
        built = time.perf_counter() - begin
        options = (self.neighbors, self.search, subject.device)
        searches = [nearest_by_size(part.plain.keys, store.keys, store.ends, *options) for part in sets]
        for size in range(len(text.sizes)):
            retrieved = [
                knn.with_neighbors(store, search[size].neighbors, part.plain.log_probs, part.plain.ids)
                for part, search in zip(sets, searches, strict=True)
            ]
            settings = self.settings(sets, retrieved)
            for part, targets, setting, search in zip(sets, retrieved, settings, searches, strict=True):
                seconds = part.seconds + search[size].seconds / len(targets.ids)
                scores = knn_scores(subject.model, part, targets, setting)
                scores["interpolation"] = Score(setting.interpolation)
                scores["temperature"] = Score(setting.temperature)
                scores |= store_scores(store.num_bytes(size), built * store.ends[size] / store.ends[-1], seconds)
                part.add("knn", scores, text, size)
                for weight in self.interpolations if size == len(text.sizes) - 1 else ():
                    other = knn_scores(subject.model, part, targets, knn.Setting(weight, setting.temperature))
                    part.scores |= {f"knn/interpolation{weight:g}/{name}": score for name, score in other.items()}

    def settings(self, sets: Sequence[Measured], retrieved: Sequence[knn.Retrieved]) -> list[knn.Setting]:
        """Interpolation and temperature for each data set; what is open is chosen on items that are not reported."""
        halves = [targets[~part.reported] for part, targets in zip(sets, retrieved, strict=True)]
        if self.shared_setting:
            return [knn.choose_setting(halves, self.interpolation, self.temperature)] * len(sets)
        return [knn.choose_setting([half], self.interpolation, self.temperature) for half in halves]

    def add_in_context(self, subject: Subject, sets: Sequence[Measured], text: StoreText, method: str) -> None:
        """Adds the scores with chunks in front of the text, at every size of the store."""
        model, tokenizer, tokens = subject.model, subject.tokenizer, pass_tokens(subject.model, subject.rows)
        chunks = cut_chunks(text, tokenizer, self.lengths(model)[0])
        between = np.array(tokenizer.encode(self.between), np.int64)
        for size, end in enumerate(chunks.ends):
            of_size, begin = chunks.ids[:end], time.perf_counter()
            index: in_context.Index = (
                in_context.BM25Index(of_size, tokenizer)
                if method == "bm25"
                else in_context.DenseIndex(model, of_size, self.search, tokens)
            )
            built, stored = time.perf_counter() - begin, index.num_bytes + sum(chunk.nbytes for chunk in of_size)
            for part in sets:
                items, begin = part.items, time.perf_counter()
                texts = in_context.retrieve_texts(index, items.pieces, of_size, self.chunks, between)
                label = f"scoring {items.name} with {method}"
                log_probs, greedy = in_context.score_with_texts(
                    model, items.rows, items.pieces, texts, part.plain, tokens, first_token(tokenizer), label
                )
                seconds = (time.perf_counter() - begin) / len(part.plain.ids)
                scores = scores_of(items, part.plain, log_probs, greedy, part.reported, part.plain)
                if items.is_table:
                    scores["answer_retrieved"] = share_with_answer(items, texts, part.on_report, tokenizer)
                part.add(method, scores | store_scores(stored, built, seconds), text, size)
                if size == len(chunks.ends) - 1:
                    add_examples(part, method, texts, log_probs, tokenizer.decode)

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        from kleiber_topics.retrieval.figures import figures

        return figures(results)

    def page(self, results: Json) -> str:
        from kleiber_topics.retrieval.figures import page

        return page(results["details"])


def first_token(tokenizer: Tokenizer) -> int | None:
    """The token that stays in front of a prompt; None where prompts begin without one."""
    return tokenizer.begin if tokenizer.begin != tokenizer.eos else None
