"""A server of one text, which counts requests, and may require a password or a token."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from small_run import REPOSITORY

TEXT = (REPOSITORY / "tests/data/tiny.txt").read_bytes()
ROWS = "".join(json.dumps({"text": line}) + "\n" for line in TEXT.decode().splitlines() if line.strip()).encode()


class Beacon(ThreadingHTTPServer):
    """The server; `secret` is both the password of `user` and the token."""

    daemon_threads = True

    def __init__(self, secret: str | None = None) -> None:
        self.requests: list[str] = []
        self.secret = secret
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def place(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """URL of the text, without a secret."""
        return f"http://{self.place}/text.txt"

    def accepts(self, path: str, authorization: str | None) -> bool:
        """Whether a request has the secret."""
        basic = base64.b64encode(f"user:{self.secret}".encode()).decode()
        return self.secret is None or authorization == f"Basic {basic}" or f"token={self.secret}" in path


class Answer(BaseHTTPRequestHandler):
    server: Beacon

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        accepted = self.server.accepts(self.path, self.headers.get("Authorization"))
        body = (ROWS if ".jsonl" in self.path else TEXT) if accepted else b""
        self.send_response(200 if accepted else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(secret: str | None = None) -> Iterator[Beacon]:
    """A server that runs within the context."""
    server = Beacon(secret)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
