"""Instruction following: the share of verifiable instructions that answers follow, beside that of unasked answers.

The prompts have the columns of IFEval (Zhou et al. 2023, arXiv:2311.07911), and its rules verify the answers. Every
topic is asked with every instruction, so that what an instruction changes can be told from what the topic does.
Topics and sentences are simple, for small models: none needs knowledge, and most answers are a few words.

Implemented are the instructions whose check is a rule about words, sentences, lines, letters or the end of a text. An
argument that is null is missing, as in tables, where all rows have all arguments as columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from jaxtyping import Bool

from kleiber.data import DataSet, NamedData, Turn, encode_prompt
from kleiber.evals import Evaluation, Results, Subject, mean_score, proportion_score
from kleiber.models import continuations
from kleiber.types import Count, DataPath, Json, Metric, Metrics, Natural, Row, Scores, variants

if TYPE_CHECKING:
    from altair import TopLevelMixin

YES = {True: "yes", False: "no"}
NAME = "builtin/instructions"

TOPICS = (
    "Tell me about the sea.",
    "Describe a good friend.",
    "What do you see in a garden?",
    "Tell a story about a dog.",
    "Why do people sleep?",
    "Describe your favorite food.",
    "What happens when it rains?",
    "Tell me about a day at school.",
    "Describe a red ball.",
    "What makes people happy?",
    "Tell a story about a lost toy.",
    "What can you do in a park?",
)
INSTRUCTIONS: tuple[tuple[str, str, Json], ...] = (  # sentence, name of the check, its arguments
    ("Use the word blue.", "keywords:existence", {"keywords": ["blue"]}),
    ("Do not use the word the.", "keywords:forbidden_words", {"forbidden_words": ["the"]}),
    ("Answer with less than 10 words.", "length_constraints:number_words", {"relation": "less than", "num_words": 10}),
    ("Answer with at least 12 words.", "length_constraints:number_words", {"relation": "at least", "num_words": 12}),
    (
        "Answer in one sentence.",
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
    ),
    (
        "Make a list of exactly 3 points, each on a line that begins with *.",
        "detectable_format:number_bullet_lists",
        {"num_bullets": 3},
    ),
    ("Write in lower case letters only.", "change_case:english_lowercase", {}),
    ("Write in capital letters only.", "change_case:english_capital", {}),
    ("End your answer with the words thank you.", "startend:end_checker", {"end_phrase": "thank you."}),
    ("Put your whole answer in double quotes.", "startend:quotation", {}),
    ("Do not use any commas.", "punctuation:no_comma", {}),
)
WORD = re.compile(r"\w+")
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
BULLET = re.compile(r"^[ \t]*(?:\*(?!\*)|-(?!-))[ \t]*\S", re.MULTILINE)  # not a word in bold, and no rule
QUOTES = "\"' "  # and spaces
RELATIONS = ("less than", "at least")

Check = Callable[[str, Json], bool]  # a text that is not empty and the arguments of the instruction


def has_word(text: str, phrase: str) -> bool:
    """Whether a word or phrase occurs, in letters of either case and not as a part of another word."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def count_sentences(text: str) -> int:
    """Number of sentences, the last of which need not have a mark at its end."""
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + (WORD.search(rest) is not None)


def related(count: int, arguments: Json, name: str) -> bool:
    """Whether a count is in the relation to the argument `name`. Raises ValueError for another relation."""
    relation = arguments["relation"]
    if relation not in RELATIONS:
        raise ValueError(f"relation={relation} must be one of {', '.join(RELATIONS)}")
    return count < arguments[name] if relation == "less than" else count >= arguments[name]


def is_quoted(text: str) -> bool:
    return len(text) > 1 and text.startswith('"') and text.endswith('"')


def ends_with(text: str, phrase: str) -> bool:
    """Whether a text ends with a phrase, in letters of either case and whatever quotes end either."""
    return text.rstrip(QUOTES).lower().endswith(phrase.strip().rstrip(QUOTES).lower())


CHECKS: Mapping[str, Check] = {
    "keywords:existence": lambda text, wanted: all(has_word(text, keyword) for keyword in wanted["keywords"]),
    "keywords:forbidden_words": lambda text, wanted: (
        not any(has_word(text, each) for each in wanted["forbidden_words"])
    ),
    "length_constraints:number_words": lambda text, wanted: related(len(WORD.findall(text)), wanted, "num_words"),
    "length_constraints:number_sentences": lambda text, wanted: related(count_sentences(text), wanted, "num_sentences"),
    "detectable_format:number_bullet_lists": lambda text, wanted: len(BULLET.findall(text)) == wanted["num_bullets"],
    "change_case:english_lowercase": lambda text, _: text == text.lower() and has_letter(text),
    "change_case:english_capital": lambda text, _: text == text.upper() and has_letter(text),
    "startend:end_checker": lambda text, wanted: ends_with(text, wanted["end_phrase"]),
    "startend:quotation": lambda text, _: is_quoted(text),
    "punctuation:no_comma": lambda text, _: "," not in text,
}


def has_letter(text: str) -> bool:
    return any(map(str.isalpha, text))


def follows(text: str, name: str, arguments: Json) -> bool:
    """Whether a text follows the instruction `name`; an empty text follows none.

    Raises ValueError for an instruction without a check here, and for arguments that it lacks.
    """
    if name not in CHECKS:
        raise ValueError(f"instruction_id_list: {name} has no check here; those with one are {', '.join(CHECKS)}")
    text = text.strip()
    try:
        return bool(text) and CHECKS[name](text, arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"kwargs of {name}: {dict(arguments)} lack a value ({error})") from None


def instruction_rows() -> list[Row]:
    """A row for each topic and instruction; kwargs are the arguments of its check."""
    return [
        {"prompt": f"{topic} {sentence}", "instruction_id_list": [name], "kwargs": [dict(arguments)]}
        for topic in TOPICS
        for sentence, name, arguments in INSTRUCTIONS
    ]


class InstructionData(NamedData):
    """The prompts as the rows of builtin/instructions."""

    name = NAME
    use = "instructions"

    def rows(self) -> list[Row]:
        return instruction_rows()


@dataclass(frozen=True)
class Request:
    """A prompt with the names and arguments of its instructions."""

    prompt: str
    names: tuple[str, ...]
    arguments: tuple[Json, ...]

    @property
    def kind(self) -> str:
        """What its first instruction is about, such as keywords or length_constraints."""
        return self.names[0].partition(":")[0]

    def is_followed(self, text: str) -> bool:
        """Whether a text follows all instructions."""
        return all(follows(text, name, options) for name, options in zip(self.names, self.arguments, strict=True))


FOLLOWED = {  # also of each kind of instruction
    "accuracy": Metric("share of instructions followed", "higher"),
    "unasked": Metric("share followed by answers to other prompts", "lower"),
    "lift": Metric("share followed beyond chance", "higher"),
}


class Instructions(Evaluation):
    """How many instructions that a rule can verify the greedy answers of a model follow (IFEval, arXiv:2311.07911).

    Many answers follow an instruction by chance: a short answer has no commas. So the same rule is also applied to the
    answers to all prompts of the table with other instructions.

    accuracy  share of prompts whose answer follows all instructions of the prompt ("strict" in IFEval)
    unasked   share of the answers to other prompts, without these instructions, that follow them too
    lift      accuracy less unasked: above 0 only where the answers depend on the instructions
    words     mean number of words of an answer

    accuracy, unasked and lift are also given for each kind of instruction, as `keywords/lift`. Intervals are of the
    bootstrap over prompts. Prompts are encoded as a user's turn, in the template of data=instruct.

    tokens  most tokens of an answer
    shown   answers on the page, with whether they follow the instruction
    data    names or paths of tables; null: those of the command, or the built-in prompts
    """

    causal = True
    metrics: ClassVar[Metrics] = {
        **FOLLOWED,
        **variants(FOLLOWED, "{kind}/*", "*, {kind},"),
        "words": Metric("length of answers", "none", "words"),
    }
    reads = "tables with the columns prompt, instruction_id_list and kwargs"
    default_data = (NAME,)

    def __init__(self, tokens: Count = 64, shown: Natural = 22, data: Sequence[DataPath] | None = None) -> None:
        self.tokens, self.shown, self.data = tokens, shown, data

    def accepts(self, data: DataSet) -> bool:
        """Whether the data is such a table. Its contamination is not measured, since it has no answers."""
        return {"prompt", "instruction_id_list", "kwargs"} <= set(data.columns)

    def evaluate(self, subject: Subject) -> Results:
        """Scores of each table. Raises ValueError for an instruction without a check, and for a single instruction."""
        scores: dict[str, Scores] = {}
        details: Json = {}
        for data in subject.data:
            requests = [read_request(row) for row in data.rows(subject.limit)]
            texts = answer(subject, requests, self.tokens)
            passed = np.array([[request.is_followed(text) for text in texts] for request in requests])
            scores[data.name] = following(requests, passed)
            scores[data.name]["words"] = mean_score([float(len(text.split())) for text in texts])
            rows = zip(requests, texts, passed.diagonal().tolist(), strict=True)
            details[data.name] = [
                {"prompt": request.prompt, "answer": text, "follows": right}
                for request, text, right in list(rows)[: self.shown]
            ]
        return Results(scores, details)

    def figures(self, results: Json, folder: Path | None) -> Mapping[str, TopLevelMixin]:
        """Accuracy by kind of instruction, with that of answers to other prompts in gray."""
        from kleiber.evals import score_figures

        return score_figures(by_kind(results["scores"]))

    def page(self, results: Json) -> str:
        """A table of the first answers, with whether they follow the instruction."""
        cells = [
            "".join(f"<td>{escape(text)}</td>" for text in (row["prompt"], row["answer"], YES[row["follows"]]))
            for rows in results["details"].values()
            for row in rows
        ]
        head = "<tr><th>prompt</th><th>answer</th><th>followed</th></tr>"
        return f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>" if cells else ""


def read_request(row: Row) -> Request:
    """The request of a row. Raises ValueError where it has no instructions, or not as many entries of arguments."""
    names, arguments = list(row["instruction_id_list"]), list(row["kwargs"])
    if not names or len(names) != len(arguments):
        raise ValueError(
            f"instruction_id_list={names} must have an instruction, and kwargs as many entries, not {len(arguments)}"
        )
    return Request(str(row["prompt"]), tuple(map(str, names)), tuple(dict(options or {}) for options in arguments))


def answer(subject: Subject, requests: Sequence[Request], tokens: int) -> list[str]:
    """Greedy answers to the prompts, up to the end of text, of at most that many tokens."""
    tokenizer = subject.tokenizer
    prompts = [encode_prompt([Turn("user", request.prompt)], tokenizer) for request in requests]
    return [tokenizer.decode(row) for row in continuations(subject.model, prompts, tokens, tokenizer.eos)]


def following(requests: Sequence[Request], passed: Bool[np.ndarray, "requests answers"]) -> Scores:
    """Accuracy, unasked and lift, over all requests and by kind.

    passed  whether the answer to each request (columns) follows the instructions of each request (rows)

    Raises ValueError where all requests have the same instructions, so that no answer is unasked.
    """
    others = np.array([[not {*a.names} & {*b.names} for b in requests] for a in requests])
    if not others.any(axis=1).all():
        raise ValueError(
            "instruction_id_list: every prompt needs another prompt without its instructions, whose answer shows how "
            "often they are followed by chance"
        )
    asked = passed.diagonal().astype(np.float64)
    unasked = (passed & others).sum(axis=1) / others.sum(axis=1)
    values = {
        "accuracy": (proportion_score, asked), "unasked": (proportion_score, unasked),
        "lift": (mean_score, asked - unasked),
    }  # fmt: skip
    kinds = np.array([request.kind for request in requests])
    scores = {metric: score(value) for metric, (score, value) in values.items()}
    for kind in dict.fromkeys(kinds.tolist()):
        scores |= {f"{kind}/{metric}": score(value[kinds == kind]) for metric, (score, value) in values.items()}
    return scores


def by_kind(scores: Mapping[str, Mapping[str, Json]]) -> dict[str, dict[str, Json]]:
    """The scores as those of data sets, one for each kind of instruction; `unasked` is chance."""
    tables: dict[str, dict[str, Json]] = {}
    names = {"accuracy": "accuracy", "unasked": "chance"}
    for data, of_data in scores.items():
        for path, score in of_data.items():
            kind, _, metric = path.rpartition("/")
            label = kind.replace("_", " ") or "all instructions"
            if metric in names:
                tables.setdefault(label if len(scores) == 1 else f"{data}: {label}", {})[names[metric]] = score
    return tables
