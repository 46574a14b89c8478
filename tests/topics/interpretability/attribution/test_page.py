"""The page of explained texts shows every method, escapes texts, and works in a browser."""

import shutil
import subprocess

import pytest
from html_elements import adds_no_element
from processes import PATIENCE

from kleiber_topics.interpretability.attribution.page import LABELS, explorer


def test_the_page_shows_every_method_and_escapes_texts():
    text = {
        "tokens": ["</script><b>", "b"],
        "targets": [{"at": 1, "name": "<i>", "log_prob": -1.0}, {"at": None, "name": "<u>", "log_prob": -1.0}],
        "methods": {name: [[0.1, 0.2], [0.3, -0.1]] for name in LABELS},
    }
    page = explorer({"a/<i>": [text]})
    assert "attention rollout" in page and "</script><b>" not in page and "a/<i>" not in page
    assert "<u>" not in page and "&lt;i&gt;" in page and explorer({"a": []}) == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_colors_the_tokens(tmp_path):
    text = {
        "tokens": ["a", "<b>", "c"],
        "targets": [{"at": 1, "name": "b", "log_prob": -1.0}, {"at": 2, "name": "c", "log_prob": -2.5}],
        "methods": {"occlusion": [[0.5, 0.0], [0.25, -1.0]]},
    }
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8>{explorer({'text': [text]})}", encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--virtual-time-budget=2000", "--dump-dom", file.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert "log p = -2.5 nats" in page and "rgba(0, 114, 178, 0.85)" in page and "&lt;b&gt;</button>" in page


def explained_page(text: str) -> str:
    targets = [{"at": 1, "name": text, "log_prob": -1.0}, {"at": None, "name": text, "log_prob": -1.0}]
    methods = {name: [[0.1, 0.2], [0.3, -0.1]] for name in LABELS}
    return explorer({text: [{"tokens": [text, text], "targets": targets, "methods": methods}]})


def test_a_hostile_text_adds_no_element():
    assert adds_no_element(explained_page)
