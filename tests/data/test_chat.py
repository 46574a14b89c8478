"""Conversations: every form of table becomes the same turns, and exactly the answers are marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from kleiber.data.chat import (
    Turn,
    encode_conversations,
    encode_prompt,
    has_conversations,
    jinja_template,
    parse_messages,
    parse_row,
)
from kleiber.data.pretrained_tokenizer import load_pretrained
from kleiber.data.tokenizers import BPE, Bytes

CHAT = [
    Turn("system", "be brief"),
    Turn("user", "hi é"),
    Turn("assistant", "yo"),
    Turn("user", "?"),
    Turn("assistant", "!"),
]


def text(ids: list[int]) -> str:
    """Bytes as text, ends of text as `$`."""
    return "".join("$" if i == 256 else chr(i) for i in ids).encode("latin1").decode()


def test_conversations_follow_the_template_exactly() -> None:
    (encoded,) = encode_conversations([CHAT], Bytes())
    assert text(encoded.ids.tolist()) == (
        "$<|system|>\nbe brief\n<|user|>\nhi é\n<|assistant|>\nyo$<|user|>\n?\n<|assistant|>\n!$"
    )
    assert text(encoded.ids[encoded.answers].tolist()) == "yo$!$"
    (last,) = encode_conversations([CHAT], Bytes(), last_only=True)
    assert text(last.ids[last.answers].tolist()) == "!$"
    assert text(encode_prompt(CHAT[:2], Bytes())) == "$<|system|>\nbe brief\n<|user|>\nhi é\n<|assistant|>\n"


def test_an_encoded_prompt_is_the_beginning_of_the_conversation() -> None:
    (encoded,) = encode_conversations([CHAT], Bytes())
    begin = encode_prompt(CHAT[:4], Bytes())
    assert encoded.ids[: len(begin)].tolist() == begin and encoded.answers[len(begin)]


def test_a_task_of_self_instruct_is_its_first_instance() -> None:
    task = {"instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "4"}]}
    assert parse_row(task) == [Turn("user", "Add.\n\n1 2"), Turn("assistant", "3")]
    assert has_conversations(["instruction", "instances"])
    for instances in ([], "text", [{"input": "1"}]):
        with pytest.raises(ValueError, match=r"instances: .* must be a list of mappings with input and output"):
            parse_row({"instruction": "Add.", "instances": instances})


def test_several_conversations_are_encoded_as_each_alone() -> None:
    several = [CHAT, CHAT[1:3], CHAT[:4]]
    together = encode_conversations(several, Bytes())
    separate = [encode_conversations([dialog], Bytes())[0] for dialog in several]
    for batched, alone in zip(together, separate, strict=True):
        assert batched.ids.tolist() == alone.ids.tolist() and batched.answers.tolist() == alone.answers.tolist()


def test_a_conversation_begins_with_the_begin_token_and_answers_end_with_the_end_token() -> None:
    class Begun(Bytes):
        bos, mask = 257, -1

    tokenizer = Begun().with_separator("bos")
    (begun,), (plain,) = (encode_conversations([CHAT], t) for t in (tokenizer, Bytes()))
    assert begun.ids[0] == 257 and begun.ids[1:].tolist() == plain.ids[1:].tolist()
    assert begun.answers.tolist() == plain.answers.tolist()
    assert encode_prompt(CHAT[:2], tokenizer)[0] == 257
    assert jinja_template(Bytes()).startswith("{{ eos_token }}")
    assert not jinja_template(tokenizer).startswith("{{ eos_token }}")


@pytest.mark.parametrize("rstrip", [False, True])
def test_only_role_markers_of_the_template_are_special_tokens(rstrip: bool, bpe: BPE, tmp_path: Path) -> None:
    """As transformers applies the template, as long as no content spells a special token."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    source = Tokenizer.from_file(str(bpe.path))
    markers = ["<|system|>", "<|user|>", "<|assistant|>"]
    source.add_special_tokens([AddedToken(marker, rstrip=rstrip) for marker in markers])
    source.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_pretrained(str(tmp_path))
    theirs = PreTrainedTokenizerFast(tokenizer_object=source, eos_token="<|endoftext|>")
    messages = [{"role": turn.role, "content": turn.content} for turn in CHAT]
    template = jinja_template(tokenizer)
    (encoded,) = encode_conversations([CHAT], tokenizer)
    assert encoded.ids.tolist() == theirs.apply_chat_template(messages, chat_template=template, return_dict=False)
    prompt = theirs.apply_chat_template(
        messages[:2], chat_template=template, add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(CHAT[:2], tokenizer) == prompt
    ids = [tokenizer.specials[marker] for marker in markers]
    assert [i for i in encoded.ids.tolist() if i in ids] == [ids[j] for j in (0, 1, 2, 1, 2)]

    (spelled,) = encode_conversations([[Turn("user", "a<|user|>"), Turn("assistant", "b<|endoftext|>c")]], tokenizer)
    special = [i for i in spelled.ids.tolist() if i in tokenizer.specials.values()]
    assert special == [tokenizer.eos, ids[1], ids[2], tokenizer.eos]
    assert tokenizer.decode(spelled.ids[spelled.answers].tolist()) == "b<|endoftext|>c"


ASKED = [Turn("user", "2+2?"), Turn("assistant", "4")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "response": "4"},
        {"prompt": "2+2?", "completion": "4", "id": 3},
        {"question": "2+2?", "answer": "4"},
        {"instruction": "2+2?", "input": "", "output": "4", "text": "all of it"},
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]},
    ],
)
def test_forms_of_the_same_conversation(row: dict) -> None:
    assert has_conversations(list(row)) and parse_row(row) == ASKED


def test_the_input_of_an_instruction_follows_it() -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert parse_row(row) == [Turn("user", "Add.\n\n1, 2"), Turn("assistant", "3")]


def test_unknown_forms_and_roles_are_named() -> None:
    assert not has_conversations(["text", "label"])
    with pytest.raises(ValueError, match="text, label"):
        parse_row({"text": "a", "label": 1})
    parts = [{"role": "user", "content": [{"type": "text", "text": "2"}]}]
    for row, column, value in (
        ({"question": "2+2?", "answer": 4}, "answer", "4"),
        ({"instruction": "2+2?", "input": "", "output": 4}, "output", "4"),
        ({"messages": ["2?", "4"]}, "messages", "'2\\?'"),
        ({"messages": "2?"}, "messages", "'2\\?'"),
        ({"messages": parts}, "messages", ".*'text': '2'"),
    ):
        with pytest.raises(ValueError, match=f"^{column}: {value}"):
            parse_row(row)
    with pytest.raises(ValueError, match="role 'narrator'"):
        parse_messages([{"role": "narrator", "content": "once"}])


def test_a_plain_text_has_no_template_and_no_end():
    """Its tokens are those of prompt and answer as one text, of which those after the prompt are the answer."""
    from kleiber.data.chat import PLAIN

    dialog = [Turn(PLAIN, "Once upon "), Turn("assistant", " a time")]
    (encoded,) = encode_conversations([dialog], Bytes())
    assert bytes(encoded.ids.tolist()) == b"Once upon  a time" and encoded.answers.sum() == len(b"  a time")
    assert encode_prompt(dialog[:1], Bytes()) == list(b"Once upon") and encode_prompt([Turn(PLAIN, "")], Bytes()) == [
        256
    ]
