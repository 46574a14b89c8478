"""Data sets: sources of text and labels, tokenizers, token files, samples and their batches. Imports no model."""

from kleiber.types import lazy_exports

EXPORTS = {
    "Arithmetic": "arithmetic",
    "Variety": "annotators",
    "WordShare": "annotators",
    "Canaries": "canaries",
    "Deduplicated": "duplicates",
    "Unknown": "corpus",
    "Counterfactual": "counterfactual",
    "Generated": "generated",
    "Instruct": "instruct",
    "InstructSets": "instruct_sets",
    "Judged": "judged",
    "Labelled": "labelled",
    "MixtureCorpus": "mixture",
    "Repeated": "mixture",
    "Occupations": "occupations",
    "Preference": "preference",
    "Builtin": "builtin",
    "Recall": "recall",
    "Reweighted": "reweighted",
    "Text": "text",
    "Tokens": "pretokenized",
    "Trigger": "trigger",
    "Unpaired": "unpaired",
}
__getattr__ = lazy_exports(__name__, EXPORTS)
