"""A Hugging Face hub on this machine: an HTTP server that takes the calls of an upload and keeps what was committed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_a_test"


@dataclass
class FakeHub:
    """What a hub has received. With a `refusal`, every POST is answered with this HTTP code.

    All files are sent within the commit, also those that the real hub takes by another protocol.

    created  bodies of the requests that create repositories
    files    content by repository, branch and path
    tokens   contents of the header Authorization
    """

    address: str = ""
    refusal: int | None = None
    created: list[dict] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def post(self, path: str, body: bytes) -> dict:
        """The answer to a POST."""
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.address}/{self.created[-1].get('organization', 'me')}/{self.created[-1]['name']}"}
        parts = path.split("/")  # "", api, models, owner, name, action, branch
        if parts[5:6] == ["preupload"]:
            how = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return {"files": [{"path": file["path"], **how} for file in json.loads(body)["files"]]}
        if parts[5:6] == ["branch"]:
            self.branches.append(parts[6])
        if parts[5:6] == ["commit"]:
            self.commit("/".join(parts[3:5]), parts[6], body)
            return {"commitUrl": f"{self.address}/{parts[3]}/{parts[4]}/commit/0", "commitOid": "0" * 40}
        return {}

    def commit(self, repository: str, branch: str, body: bytes) -> None:
        """Keeps the files of a commit."""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repository, branch, value["path"]] = base64.b64decode(value["content"])


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serves a hub until the context ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, code: int, content: dict) -> None:
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def read(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def do_HEAD(self) -> None:
            self.answer(200, {})

        def do_GET(self) -> None:
            self.answer(404, {"error": f"{self.path} is not here"})

        def do_POST(self) -> None:
            body = self.read()
            hub.tokens.add(self.headers.get("Authorization", ""))
            if hub.refusal is not None:
                self.answer(hub.refusal, {"error": "no"})
            else:
                self.answer(200, hub.post(self.path, body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
