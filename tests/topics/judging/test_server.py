"""The page is for this machine and this judge alone: who else asks is refused."""

from __future__ import annotations

import errno
import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE

from kleiber_topics.judging.judgments import Comparison, read_judgments
from kleiber_topics.judging.server import MOST_BYTES, JudgeServer
from kleiber_topics.judging.session import Session

HOSTILE = "</p><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def server(tmp_path) -> Iterator[JudgeServer]:
    pairs = [Comparison(i, f"p{i} {HOSTILE}", f"l{i} {HOSTILE}", f"r{i}", "model-a", "model-b") for i in range(3)]
    running = JudgeServer(Session(pairs, tmp_path / "j.jsonl", "me"))
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def ask(server: JudgeServer, method: str, place: str, body: object = None, token: str | None = None, **headers: str):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=PATIENCE)
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    kind = {} if content is None else {"Content-Type": "application/json"}
    connection.request(method, f"/{server.token if token is None else token}/{place}", content, {**kind, **headers})
    response = connection.getresponse()
    return response.status, response.read().decode(), dict(response.getheaders())


def test_the_page_is_served_on_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1" and len(server.token) >= 32
    status, page, headers = ask(server, "GET", "")
    assert status == 200 and "Which answer is better?" in page
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert page.count(f'nonce="{nonce}"') == 2 and "http" not in page.replace("https://www.w3.org", "")
    assert ask(server, "GET", "")[2]["Content-Security-Policy"] != policy  # a nonce of its own each time


def test_the_state_is_blind(server):
    status, text, headers = ask(server, "GET", "state")
    assert status == 200 and "model-a" not in text and "model-b" not in text
    assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"


def test_choices_are_written_and_the_next_comparison_comes_back(server, tmp_path):
    assert json.loads(ask(server, "POST", "choose", {"item": 0, "choice": "right"})[1])["item"] == 1
    assert json.loads(ask(server, "POST", "skip", {"item": 1})[1])["item"] == 2
    assert json.loads(ask(server, "POST", "choose", {"item": 0, "choice": "left"})[1])["item"] == 2  # stale: no change
    assert json.loads(ask(server, "POST", "back", {})[1])["item"] == 0
    assert read_judgments(tmp_path / "j.jsonl") == []
    assert not server.session.finished.is_set() and ask(server, "POST", "finish", {})[0] == 200
    assert server.session.finished.is_set()


def test_strangers_are_refused(server, tmp_path):
    choice, port = {"item": 0, "choice": "left"}, server.server_address[1]
    refused = [
        ask(server, "GET", "state", token="guess")[0], ask(server, "GET", "state", token="")[0],
        ask(server, "GET", "elsewhere")[0], ask(server, "GET", "choose")[0],
        ask(server, "GET", "state", Host=f"evil.example:{port}")[0],
        ask(server, "POST", "choose", choice, Origin="http://evil.example")[0],
        ask(server, "POST", "choose", choice, Origin="null")[0],
        ask(server, "POST", "choose", choice, **{"Content-Type": "text/plain"})[0],
        ask(server, "POST", "choose", b"x" * (MOST_BYTES + 1))[0],
        ask(server, "POST", "choose", b"{")[0], ask(server, "POST", "choose", [])[0],
        ask(server, "POST", "choose", {"item": 0})[0], ask(server, "POST", "choose", {"item": 0, "choice": "up"})[0],
    ]  # fmt: skip
    assert refused == [404, 404, 404, 404, 403, 403, 403, 415, 413, 400, 400, 400, 400]
    assert not (tmp_path / "j.jsonl").exists()
    assert ask(server, "POST", "choose", choice, Origin=server.origin)[0] == 200


def test_deep_json_and_an_endless_length_are_refused_without_a_traceback(server, tmp_path, capfd):
    deep = b"[" * 2000 + b"]" * 2000
    assert ask(server, "POST", "choose", deep)[0] == 400
    assert ask(server, "POST", "choose", b'{"item":' + deep + b"}")[0] == 400
    for digits in ("9" * 5000, "0" * 5000 + "1"):
        assert ask(server, "POST", "choose", b"{}", **{"Content-Length": digits})[0] == 413
    assert not (tmp_path / "j.jsonl").exists() and capfd.readouterr().err == ""


def test_a_connection_that_the_browser_resets_is_not_reported(server, capfd):
    ended = threading.Event()
    close = server.shutdown_request
    server.shutdown_request = lambda request: (close(request), ended.set())  # type: ignore[method-assign]
    for text in (b"", f"GET /{server.token}/state HTTP/1.1\r\n".encode()):
        ended.clear()
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
            connection.sendall(text)
        assert ended.wait(10)
    assert ask(server, "GET", "state")[0] == 200 and capfd.readouterr().err == ""


def test_a_full_disk_is_told_on_the_page_and_the_choice_can_be_repeated(server, tmp_path, capfd, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("kleiber_topics.judging.session.append_judgments", full)
        status, text, _ = ask(server, "POST", "choose", {"item": 0, "choice": "left"})
        assert status == 507 and "j.jsonl" in text and json.loads(ask(server, "GET", "state")[1])["item"] == 0
    reported = capfd.readouterr().err
    assert reported.count("\n") == 1 and "j.jsonl" in reported
    assert json.loads(ask(server, "POST", "choose", {"item": 0, "choice": "left"})[1])["item"] == 1


def test_an_error_of_a_request_is_one_line(server, capfd, monkeypatch):
    monkeypatch.setattr(server.session, "state", lambda: 1 / 0)
    with pytest.raises((http.client.HTTPException, OSError)):
        ask(server, "GET", "state")
    reported = capfd.readouterr().err
    assert reported.count("\n") == 1 and "ZeroDivisionError" in reported


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_keys_work_in_a_browser_and_hostile_text_is_text(server, tmp_path, monkeypatch):
    """A script in the page presses keys: right, tie, back, both bad, left; then the page says that all is judged."""
    from kleiber_topics.judging import server as module

    press = (
        "const keys = ['ArrowRight', 't', 'Backspace', 'b', 'ArrowLeft'];"
        "const timer = setInterval(() => { if (busy) return; const key = keys.shift();"
        "if (!key) { clearInterval(timer); return; }"
        "document.dispatchEvent(new KeyboardEvent('keydown', {key})); }, 50);"
    )
    page = Path(module.__file__).with_name("page.html").read_text().replace('ask("state");', f'ask("state"); {press}')
    (tmp_path / "page.html").write_text(page)
    monkeypatch.setattr(module, "files", lambda _: tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--window-size=1100,760"]
    shot = tmp_path / "page.png"
    command = ["chromium", *flags, f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([*command, "--dump-dom", server.url], capture_output=True, text=True, timeout=PATIENCE).stdout
    choices = [judgment.choice for judgment in read_judgments(tmp_path / "j.jsonl")]
    assert choices == ["right", "both bad", "left"]
    assert "3 of 3 judged by me" in dom and "<title>kleiber judge</title>" in dom
    server.session.back()
    subprocess.run([*command, f"--screenshot={shot}", server.url], capture_output=True, timeout=PATIENCE)
    assert shot.stat().st_size > 5000
