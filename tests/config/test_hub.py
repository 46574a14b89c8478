"""Local copies of hub names are found, and it is known within seconds whether the hub can be reached."""

import os
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from processes import PATIENCE

from kleiber.config import hub


@pytest.mark.parametrize(
    ("path", "expected"),
    [("gpt2", True), ("owner/name-1.0", True), ("a/b/c", False), ("./name", False), ("owner/", False), ("a b", False)],
)
def test_names_of_the_hub_have_at_most_two_parts(path, expected):
    assert hub.is_name(path) == expected


def test_a_local_copy_may_have_underscores_and_lower_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hh_rlhf").mkdir()
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path))
    assert hub.local_copy("Anthropic/hh-rlhf") == tmp_path / "hh_rlhf"
    assert hub.local_copy("Anthropic/hh") is None
    (tmp_path / "Anthropic" / "hh-rlhf").mkdir(parents=True)
    assert hub.local_copy("Anthropic/hh-rlhf") == tmp_path / "Anthropic" / "hh-rlhf"


def test_a_folder_of_copies_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KLEIBER_DATA", str(tmp_path / "missing"))
    with pytest.raises(ValueError, match=r"KLEIBER_DATA=.*missing"):
        hub.local_copy("gpt2")
    monkeypatch.delenv("KLEIBER_DATA")
    assert hub.local_copy("gpt2") is None


def test_a_hub_that_does_not_answer_is_given_up_after_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.05)
    tried = threading.Event()
    monkeypatch.setattr(hub, "_answers", lambda url: tried.wait(PATIENCE))
    assert not hub.reachable(), "it is still being asked"
    tried.set()


def test_offline_holds_within_the_block_and_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(KeyError), hub.offline():
        assert constants.HF_HUB_OFFLINE is True and os.environ["HF_HUB_OFFLINE"] == "1" and not hub.reachable()
        raise KeyError("an error within the block")
    assert constants.HF_HUB_OFFLINE is False and "HF_HUB_OFFLINE" not in os.environ
