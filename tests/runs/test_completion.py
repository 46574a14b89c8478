"""Continued prompts and conversations: pieces of whole characters, stop texts, the end of text, remembered turns."""

import json
from pathlib import Path

import pytest
import torch

from kleiber.data.chat import Turn, encode_prompt
from kleiber.data.tokenizers import Bytes
from kleiber.models.beam_search import beam_search
from kleiber.models.generation import generate
from kleiber.models.transformer import Transformer
from kleiber.records.files import read_json
from kleiber.runs import completion
from kleiber.runs.completion import Chat, Sampling, certain_length, chat_loop, continue_prompt, encoder
from kleiber.runs.huggingface import save_tokenizer
from kleiber.runs.open import TrainedModel

BYTES = Bytes()


def trained(context: int = 64, causal: bool = True) -> TrainedModel:
    torch.manual_seed(0)
    model = Transformer(BYTES.vocab_size, depth=1, width=16, context=context, causal=causal, tied=False)
    torch.nn.init.normal_(model.head.weight)
    return TrainedModel(Path("run"), model.eval(), BYTES, {"objective": {}})


@pytest.fixture
def drawn(monkeypatch):
    """Makes every continuation draw the tokens of a text, and then of an end-of-text token."""

    def draw(text: bytes) -> None:
        ids = [*text, BYTES.eos]
        monkeypatch.setattr(completion, "stream", lambda *_, **__: iter([torch.tensor([i]) for i in ids]))

    return draw


def test_a_continuation_is_what_generate_draws_with_the_same_seed():
    run, prompt = trained(), "ab"
    first = continue_prompt(run, prompt, Sampling(20, temperature=0.5, top_p=0.9, seed=4))
    assert "".join(first) == first.text
    drawn = torch.Generator().manual_seed(4)
    ids = torch.tensor([BYTES.encode_prompt(prompt)])
    rows = generate(run.model, ids, 20, temperature=0.5, top_p=0.9, generator=drawn, eos=BYTES.eos)
    new = [i for i in rows[0, ids.shape[1] :].tolist() if i != BYTES.eos]
    assert first.ids == new and first.text == BYTES.decode([*ids[0].tolist(), *new])[len(prompt) :]
    assert first.ended == ("eos" if len(new) < 20 else "length")


@pytest.mark.parametrize("stop", [(), ("a",), ("b", "c", "d", "e", "f", "g")])
def test_a_searched_continuation_is_that_of_beam_search_up_to_a_stop_text(stop):
    run, prompt = trained(), BYTES.encode_prompt("ab")
    searched = continue_prompt(run, "ab", Sampling(20, temperature=0, beams=3, stop=stop))
    assert "".join(searched) == searched.text and not any(ending in searched.text for ending in stop)
    ids = beam_search(
        run.model, torch.tensor([prompt]), None, 20, BYTES.eos, 3,
        stop=lambda ids: any(ending in BYTES.decode(ids) for ending in stop),
    )[0]  # fmt: skip
    assert searched.ids == ids
    text = BYTES.decode(ids)
    assert searched.text == text[: min((text.find(e) for e in stop if e in text), default=len(text))]


def test_pieces_are_whole_characters(drawn):
    drawn("né €.".encode())
    answer = continue_prompt(trained(), "x", Sampling())
    assert list(answer) == ["n", "é", " ", "€", "."] and answer.ended == "eos"


def test_text_that_ends_within_a_character_is_told_as_such(drawn):
    drawn("a€".encode()[:-1])
    assert "".join(continue_prompt(trained(), "x", Sampling())) == BYTES.decode(list("a€".encode()[:-1]))


def test_a_stop_text_over_several_tokens_is_not_shown_even_in_part(drawn):
    drawn(b"one\nyou\nUser: two")
    answer = continue_prompt(trained(), "x", Sampling(stop=("\nUser:", "END")))
    pieces = list(answer)
    assert "".join(pieces) == answer.text == "one\nyou" and answer.ended == "stop"
    assert "\n" not in pieces and "\ny" in pieces, "a line break is held back until it is no stop text"


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("abc", ("cd",), 2), ("abcab", ("abcabx", "bb"), 0), ("abc", ("x",), 3), ("a\ufffd", (), 1), ("", ("a",), 0)],
)
def test_text_is_certain_up_to_what_may_begin_a_stop_text(text, stop, length):
    assert certain_length(text, stop) == length


def test_a_model_that_is_not_causal_and_settings_that_cannot_be_are_refused_at_once():
    with pytest.raises(ValueError, match="not causal"):
        continue_prompt(trained(causal=False), "x", Sampling())
    with pytest.raises(ValueError, match=r"top_p=2"):
        continue_prompt(trained(), "x", Sampling(top_p=2.0))


def test_a_chat_remembers_its_turns_and_forgets_them_when_asked(drawn):
    drawn(b"yes")
    chat, written, lines = (
        Chat(trained(context=512), Sampling(), "be kind"),
        [],
        iter(["hi", "", "why?", "/reset", "who?"]),
    )

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        if line == "/reset":
            turns = [
                ("system", "be kind"),
                ("user", "hi"),
                ("assistant", "yes"),
                ("user", "why?"),
                ("assistant", "yes"),
            ]
            assert chat.turns == [Turn(*turn) for turn in turns]
        return line

    chat_loop(chat, read, written.append)
    assert chat.turns == [Turn("system", "be kind"), Turn("user", "who?"), Turn("assistant", "yes")]
    assert "".join(written) == "yes\n" * 3


def test_the_oldest_turns_leave_a_full_context_and_the_system_prompt_stays(drawn):
    drawn(b"ok")
    run = trained(context=120)
    chat = Chat(run, Sampling(tokens=20), "sys")
    for text in ("first", "second", "third"):
        answer = chat.answer(text)
        assert answer.prompt_ids == encode_prompt(chat.turns, BYTES) and len(answer.prompt_ids) <= 100
        list(answer)
        chat.remember(answer)
    contents = [turn.content for turn in chat.turns]
    assert contents[0] == "sys" and "first" not in contents and contents[-2:] == ["third", "ok"]


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_with_a_hugging_face_folder_has_the_template_of_the_folder(file, tmp_path):
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    save_tokenizer(BYTES, tmp_path, 64)
    if file.endswith(".json"):
        template = json.dumps(read_json(tmp_path / file) | {"chat_template": template})
    (tmp_path / file).write_text(template)
    encode = encoder(TrainedModel(tmp_path, trained().model, BYTES))
    assert BYTES.decode(encode([Turn("user", "Hi")])) == "[user]Hi>"


def test_answers_to_the_same_message_differ_by_seed_and_repeat_with_it():
    texts = []
    for seed in (0, 0, 1):
        chat = Chat(trained(), Sampling(16, seed=seed))
        answers = []
        for _ in range(2):
            answers.append("".join(chat.answer("hi")))
            chat.turns.clear()
        texts.append(answers)
    assert texts[0] == texts[1] != texts[2] and texts[0][0] != texts[0][1]


def test_streams_begin_a_document_go_on_beyond_the_context_and_depend_on_the_seed():
    run = trained(context=16)
    ids = run.write(3, 50, 1.0, 4)
    assert ids.shape == (3, 50) and set(ids[:, 0].tolist()) == {BYTES.begin}
    again, other = completion.write_streams(run, 3, 50, 1.0, 4), completion.write_streams(run, 3, 50, 1.0, 5)
    assert torch.equal(again, ids) and not torch.equal(other, ids) and not torch.equal(ids[0], ids[1])
    assert torch.equal(run.write(2, 9, 1e-6, 0)[0], generate(run.model, ids[:1, :1], 8, temperature=0.0)[0])
    with pytest.raises(ValueError, match="not causal"):
        trained(causal=False).write(1, 4, 1.0, 0)
