"""The server of the page: on the loopback address alone, under a random path, for one judge.

Another page of the browser can neither read nor change anything: the path is secret, a request for another host (as
after DNS rebinding) or from another origin is refused, and the page loads nothing from elsewhere. Texts are hostile:
they reach the page as JSON, and its script shows them as text, never as HTML.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

from kleiber.records import print_line
from kleiber.types import Json
from kleiber_topics.judging.session import Session, StaleItem

ADDRESS = "127.0.0.1"
MOST_BYTES = 4096  # of the body of a request
LENGTH_DIGITS = 9  # of a Content-Length: a longer one is above MOST_BYTES, or has zeros in front
SECONDS = 30  # that a connection may be silent


class Refused(Exception):
    """A request is refused with a status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class JudgeServer(ThreadingHTTPServer):
    """Serves the page of a session.

    port  0 chooses a free one
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session, self.token = session, secrets.token_urlsafe(24)
        super().__init__((ADDRESS, port), partial(Handler))

    @property
    def origin(self) -> str:
        """Scheme, address and port of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}"

    @property
    def url(self) -> str:
        """Address of the page, with its token."""
        return f"{self.origin}/{self.token}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints one line where a request could not be answered; none where the browser has closed the connection."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            print_line(f"kleiber judge: a request failed: {type(error).__name__}: {error}", err=True)


class Handler(BaseHTTPRequestHandler):
    """Answers a request of the page."""

    server: JudgeServer
    server_version, sys_version = "kleiber", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """Returns the page, or the state of the session."""
        self._answer({"": self._page, "state": self._state})

    def do_POST(self) -> None:
        """Takes a choice, and returns the state of the session after it."""
        session = self.server.session
        self._answer(
            {
                "choose": lambda: self._change(lambda body: session.choose(body["item"], body["choice"])),
                "skip": lambda: self._change(lambda body: session.skip(body["item"])),
                "back": lambda: self._change(lambda body: session.back()),
                "finish": lambda: self._change(lambda body: session.finished.set()),
            }
        )

    def _answer(self, places: dict[str, Callable[[], None]]) -> None:
        try:
            self._check()
            _, token, place = [*self.path.split("/", 2), "", ""][:3]
            if not hmac.compare_digest(token.encode(), self.server.token.encode()) or place not in places:
                raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here: open the address that the command printed")
            places[place]()
        except Refused as refusal:
            self.close_connection = True
            self._send(refusal.status, "text/plain; charset=utf-8", refusal.reason.encode())

    def _check(self) -> None:
        """Raises Refused for a request that another page may have sent."""
        port = self.server.server_address[1]
        if self.headers.get("Host") not in (f"{ADDRESS}:{port}", f"localhost:{port}"):
            raise Refused(HTTPStatus.FORBIDDEN, "wrong host")
        if self.headers.get("Origin") not in (None, self.server.origin, f"http://localhost:{port}"):
            raise Refused(HTTPStatus.FORBIDDEN, "wrong origin")

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = files(__package__ or "").joinpath("page.html").read_text(encoding="utf-8").replace("NONCE", nonce)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", page.encode(), policy)

    def _state(self) -> None:
        body = json.dumps(self.server.session.state()).encode()
        self._send(HTTPStatus.OK, "application/json", body)

    def _change(self, change: Callable[[Json], None]) -> None:
        body = self._body()
        try:
            change(body)
        except StaleItem:
            pass  # the state that is sent back shows the right one
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        except OSError as error:  # such as a full disk
            reason = f"{self.server.session.path} cannot be written ({error.strerror}): make room, and choose again"
            print_line(f"kleiber judge: {reason}", err=True)
            raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, reason) from None
        self._state()

    def _body(self) -> Json:
        """The object in the body of the request."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request needs a Content-Length")
        if len(length) > LENGTH_DIGITS or int(length) > MOST_BYTES:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request has more than {MOST_BYTES} bytes")
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the request must be application/json")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request is no JSON, or is nested too deeply") from None
        if not isinstance(body, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request is no JSON object")
        return body

    def _send(self, status: HTTPStatus, kind: str, body: bytes, policy: str = "default-src 'none'") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin", "X-Frame-Options": "DENY",
        }.items():  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: the address has the token in it."""
