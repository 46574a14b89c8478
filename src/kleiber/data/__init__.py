"""Data sets: sources of text and labels, tokenizers, token files, samples and their batches. Imports no model."""

from typing import TYPE_CHECKING

from kleiber.types import lazy_exports

if TYPE_CHECKING:
    from kleiber.data.batches import ConcatSamples, HeldOutRows, pad, sample_numbers
    from kleiber.data.builtin import Builtin
    from kleiber.data.cache import FORMAT, cache_root, cached_folder, digest
    from kleiber.data.chat import PLAIN, TEMPLATE, Conversation, Turn, encode_prompt
    from kleiber.data.corpus import TextCorpus, choose_tokenizer, concatenate, parse_bytes, prepare
    from kleiber.data.duplicates import Ids, document_starts, rewrite, training_file, without_duplicates
    from kleiber.data.evaluation_sets import TEXT, DataSet, fingerprint, open_sets, open_training_text
    from kleiber.data.instruct import Conversations, Instruct, InstructCorpus, PackedConversations, read_conversations
    from kleiber.data.mixture import Mixture
    from kleiber.data.mixture_corpus import MixtureCorpus, Repeated, TextData
    from kleiber.data.named import NamedData
    from kleiber.data.order import Permutation, permutation, splitmix64
    from kleiber.data.preference import PairRows, Preference, PreferenceCorpus
    from kleiber.data.prompts import prompts_of, read_prompts
    from kleiber.data.reading import join_readings
    from kleiber.data.sources import Document, Source, SourceText, limit_bytes
    from kleiber.data.survey import Audit
    from kleiber.data.table import Table
    from kleiber.data.task import TaskRows, TaskTexts, task_rows
    from kleiber.data.text import Text
    from kleiber.data.token_files import TokenFile, TokenRows, TrainWindows, id_dtype, read_rows, write_rows
    from kleiber.data.tokenizers import Bytes

EXPORTS = {
    "Deduplicated": "duplicates",
    "Unknown": "corpus",
    "Instruct": "instruct",
    "Labelled": "labelled",
    "MixtureCorpus": "mixture_corpus",
    "Repeated": "mixture_corpus",
    "Preference": "preference",
    "Task": "task",
    "Builtin": "builtin",
    "Text": "text",
    "Tokens": "pretokenized",
    "Unpaired": "unpaired",
}
__all__, __getattr__ = lazy_exports(__name__, EXPORTS, __file__)
