"""Prompts whose instructions a rule can verify, in the columns of IFEval (Zhou et al. 2023, arXiv:2311.07911).

Every topic is asked with every instruction, so that what an instruction changes can be told from what the topic does.
Topics and sentences are simple, for small models: none needs knowledge, and most answers are a few words.
"""

from __future__ import annotations

from kleiber.data import NamedData
from kleiber.types import Json, Row

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
