"""A Hugging Face hub on this machine: an HTTP server that speaks the hub's protocol for what is read and uploaded."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_a_test"
STORAGE = "/storage/"  # where the server redirects large files to, as the hub does


@dataclass
class FakeHub:
    """What a hub has, and what it has received.

    All files of an upload are sent within the commit, also those that the real hub takes by another protocol.

    files     content by repository, branch and path; the repository of a data set begins with `datasets/`
    private   repositories that answer only to a token
    created   bodies of the requests that create repositories
    tokens    contents of the header Authorization where something was sent
    requests  method and path of every request
    refusal   HTTP code of the answer to every POST of an upload
    refused   HTTP codes of answers, by a part of the path; with `times`, only the first ones
    wait      seconds of the header Retry-After of these answers
    cut       bytes after which the connection of a download ends, though more were promised
    slow      seconds before each answer
    stored    whether files are sent by a redirect to a storage, as the hub's large files are
    gone      whether connections end without an answer
    """

    address: str = ""
    refusal: int | None = None
    created: list[dict] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    files: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    tokens: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    times: int = 1_000_000
    wait: int | None = None
    cut: int | None = None
    slow: float = 0.0
    stored: bool = False
    gone: bool = False

    def mend(self) -> None:
        """Ends all faults, and forgets the requests."""
        self.refused, self.times, self.wait, self.cut, self.slow, self.gone = {}, 1_000_000, None, None, 0.0, False
        self.stored = False
        self.requests.clear()

    def add(self, repository: str, files: dict[str, bytes | str], branch: str = "main") -> None:
        """Puts files into a repository."""
        for path, content in files.items():
            self.files[repository, branch, path] = content if isinstance(content, bytes) else content.encode()

    def at(self, repository: str, branch: str) -> dict[str, bytes]:
        """The files of a branch of a repository."""
        return {path: content for (name, at, path), content in self.files.items() if (name, at) == (repository, branch)}

    def commit_of(self, repository: str, branch: str = "main") -> str:
        """The name of the last commit, which changes with any file."""
        files = self.at(repository, branch)
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def of(self, repository: str, revision: str) -> dict[str, bytes]:
        """The files of a branch, or of the last commit to main."""
        return self.at(repository, "main" if revision == self.commit_of(repository) else revision)

    def downloads(self) -> list[str]:
        """The paths whose content was sent."""
        places = ("/resolve/", STORAGE)
        return [
            path for method, path in map(str.split, self.requests) if method == "GET" and any(p in path for p in places)
        ]

    def post(self, path: str, body: bytes) -> dict | list:
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
        if parts[5:6] == ["paths-info"]:
            text = body.decode()
            paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
            repository, kept = repository_of(parts[2], parts[3:5]), unquote(parts[6])
            return [entry for entry in entries(self.of(repository, kept)) if entry["path"] in paths]
        return {}

    def commit(self, repository: str, branch: str, body: bytes) -> None:
        """Keeps the files of a commit."""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repository, branch, value["path"]] = base64.b64decode(value["content"])

    def description(self, kind: str, repository: str, branch: str) -> dict:
        """What the hub says of a repository."""
        files = self.of(repository, branch)
        return {
            "_id": "0", "id": repository.removeprefix("datasets/"), "sha": self.commit_of(repository),
            "private": False, "disabled": False, "gated": False, "tags": [], "downloads": 0, "likes": 0,
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in files],
            **({"modelId": repository} if kind == "models" else {}),
        }  # fmt: skip


def repository_of(kind: str, names: list[str]) -> str:
    """The name of a repository as `FakeHub.files` has it."""
    return "/".join(["datasets", *names] if kind == "datasets" else names)


def etag(content: bytes) -> str:
    """The hash by which the hub tells versions of a file apart."""
    return hashlib.sha256(content).hexdigest()


def entries(files: dict[str, bytes], below: str = "", recursive: bool = True) -> list[dict]:
    """The listing of a folder as the hub gives it."""
    listed: dict[str, dict] = {}
    for path, content in files.items():
        if below and not path.startswith(f"{below}/"):
            continue
        rest = path.removeprefix(f"{below}/") if below else path
        folders = rest.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join([*([below] if below else []), *folders[:depth]])
            listed.setdefault(
                folder, {"type": "directory", "oid": etag(folder.encode())[:40], "size": 0, "path": folder}
            )
        listed[path] = {"type": "file", "oid": etag(content)[:40], "size": len(content), "path": path}
    depth = below.count("/") + 1 if below else 0
    return [entry for path, entry in listed.items() if recursive or path.count("/") == depth]


class Handler(BaseHTTPRequestHandler):
    """Answers the requests to a self.hub."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def answer(self, code: int, content: object, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, code: int, message: str, **headers: str) -> None:
        self.answer(code, {"error": message}, X_Error_Message=message, **headers)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def stopped(self) -> bool:
        """Notes a request, and answers those that the hub refuses."""
        if self.hub.gone:
            self.close_connection = True
            return True
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.command == "POST":
            self.hub.tokens.add(self.headers.get("Authorization", ""))
        time.sleep(self.hub.slow)
        code = next((code for part, code in self.hub.refused.items() if part in self.path), None)
        if code is None or self.hub.times <= 0:
            return False
        self.hub.times -= 1
        self.fail(code, "refused", **({} if self.hub.wait is None else {"Retry_After": str(self.hub.wait)}))
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.stopped():
            return
        address = urlsplit(self.path)
        parts = [unquote(part) for part in address.path.split("/")[1:]]
        if address.path == "/":
            return self.answer(200, {})
        if address.path.startswith(STORAGE):
            return self.send(repository_of(parts[1], parts[2:4]), parts[4], "/".join(parts[5:]))
        kind = "datasets" if "datasets" in parts[:2] else "models"
        names = parts[2:4] if parts[0] == "api" else parts[1:3] if kind == "datasets" else parts[:2]
        repository = repository_of(kind, names)
        if not any(name == repository for name, _, _ in self.hub.files):
            return self.fail(401, "Invalid username or password.", X_Error_Code="RepoNotFound")
        if repository in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.fail(401, "Access to it is restricted.", X_Error_Code="GatedRepo")
        if parts[0] == "api":
            return self.describe(kind, repository, parts[4:], parse_qs(address.query))
        rest = parts[3:] if kind == "datasets" else parts[2:]
        if rest[:1] == ["resolve"]:
            content = self.hub.of(repository, rest[1]).get("/".join(rest[2:]))
            if content is not None and self.hub.stored:
                place = f"{STORAGE}{kind}/{'/'.join(names)}/{rest[1]}/{'/'.join(rest[2:])}"
                sizes = {"X_Linked_Size": str(len(content)), "X_Linked_Etag": f'"{etag(content)}"'}
                return self.answer(302, b"", Location=place, X_Repo_Commit=self.hub.commit_of(repository), **sizes)
            return self.send(repository, rest[1], "/".join(rest[2:]))
        return self.fail(404, f"{self.path} is not here")

    def describe(self, kind: str, repository: str, rest: list[str], query: dict[str, list[str]]) -> None:
        """Answers a question about a repository: its description, or the listing of a folder."""
        branch = rest[1] if len(rest) > 1 else "main"
        files = self.hub.of(repository, branch)
        if not files:
            return self.fail(404, f"Invalid rev id: {branch}", X_Error_Code="RevisionNotFound")
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            listed = entries(files, below, query.get("recursive", ["false"])[0].lower() == "true")
            return self.answer(200, listed) if listed else self.fail(404, "no folder", X_Error_Code="EntryNotFound")
        if rest[:1] in ([], ["revision"]):
            return self.answer(200, self.hub.description(kind, repository, branch))
        return self.fail(404, f"{self.path} is not here")

    def send(self, repository: str, revision: str, path: str) -> None:
        """Sends a file, or the part of it that is asked for."""
        content, commit = self.hub.of(repository, revision).get(path), self.hub.commit_of(repository)
        if content is None:
            return self.fail(404, "Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        headers = {"ETag": f'"{etag(content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        code, asked = 200, self.headers.get("Range", "")
        if asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first or 0), min(int(last or len(content) - 1), len(content) - 1)
            headers["Content_Range"] = f"bytes {begin}-{end}/{len(content)}"
            content, code = content[begin : end + 1], 206
        if self.hub.cut is not None and self.command == "GET" and len(content) > self.hub.cut:
            self.answer(code, content[: self.hub.cut], length=str(len(content)), **headers)
            self.close_connection = True
            return None
        return self.answer(code, content, **headers)

    def do_POST(self) -> None:
        body = self.read()
        if self.stopped():
            return
        if self.hub.refusal is not None:
            self.answer(self.hub.refusal, {"error": "no"})
        else:
            self.answer(200, self.hub.post(self.path, body))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serves a hub until the context ends."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
