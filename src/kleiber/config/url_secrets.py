"""Passwords and tokens in URLs: no file, log or error has them, and the processes of this session still send them.

A command hides them in its own arguments and in its config before it does anything else. What it has hidden is kept in
an environment variable of this process and of those that it starts, and put back where a request leaves the machine.
So a run whose URL had a password is resumed by a command that has it again, or by one whose environment gives it to
fsspec, the package that opens URLs.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Value = TypeVar("Value")
VARIABLE = "KLEIBER_URL_SECRETS"  # what was hidden, as JSON: the part of a URL as it is stored, and as it was
SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
# In a text: up to the next one, and up to the quote in front of it, or any quote where there is none.
URL = re.compile(rf"(['\"])?(?P<url>{SCHEME}(?:(?!(?:::|,)?{SCHEME})(?(1)(?!\1)|(?!['\"]))\S)*)")
WHOLE_URL = re.compile(rf"(?P<url>{SCHEME}(?:(?!::)\S)*)")  # a value; `::` joins those of fsspec
CLOSING = "]}),"  # signs of the grammar of overrides behind a URL
PLACES = ("github", "git")  # schemes in which what stands before an @ is a place
WEB = ("http", "https")  # schemes in which a name without a password is a token
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
SECRET_WORDS = frozenset(
    {
        "access", "auth", "authorization", "credential", "credentials", "expires", "hmac", "jwt", "key", "pass",
        "passwd", "password", "policy", "pwd", "sas", "secret", "session", "sig", "signature", "token",
    }
)  # fmt: skip
SECRET_ENDS = ("key", "password", "secret", "signature", "token")  # of names in one word, such as apikey
SIGNED = ("x-amz-", "x-goog-", "x-oss-", "x-ms-")  # beginnings of the parameters of a signed URL
SIGNED_WITH_SIG = frozenset(
    {
        "sv", "ss", "srt", "sp", "se", "st", "spr", "sip", "sr", "skoid", "sktid", "skt", "ske", "sks", "skv", "sdd",
        "saoid", "suoid", "scid", "ses", "si", "sdt",
    }
)  # fmt: skip


def hide_secrets(text: str) -> str:
    """Returns a text in which no URL has a password or a token."""
    return _replace(text, lambda url: _split(url)[0])


def remember_secrets(text: str) -> str:
    """Returns what `hide_secrets` returns, and keeps what it leaves out for the requests of this session."""

    def keep(url: str) -> str:
        hidden, secrets = _split(url)
        if secrets:
            os.environ[VARIABLE] = json.dumps({**_kept(), **secrets})
        return hidden

    return _replace(text, keep)


def reveal_secrets(url: str) -> str:
    """Returns a URL with the password and the token that were hidden in it in this session."""
    kept = _kept()
    if not kept:
        return url
    return "::".join(_revealed(part, kept) for part in url.split("::"))


def hidden_arguments(argv: Sequence[str] | None) -> list[str]:
    """Returns the arguments of a command without secrets, which this session keeps for its requests.

    argv  None for those of this process, which are then replaced: libraries such as W&B record them
    """
    arguments = [remember_secrets(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    if argv is None:
        sys.argv[1:] = arguments
    return arguments


def map_secrets(value: Value, change: Callable[[str], str]) -> Value:
    """Returns a value of a config with `change` applied to every text in it that contains a URL, keys included."""
    if isinstance(value, str):
        return change(value) if "://" in value else value  # type: ignore[return-value]
    if isinstance(value, Mapping):
        pairs = ((map_secrets(key, change), map_secrets(item, change)) for key, item in value.items())
        return dict(pairs)  # type: ignore[return-value]
    return [map_secrets(item, change) for item in value] if isinstance(value, list) else value  # type: ignore[return-value]


def open_file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of a URL or pattern, and the path in it; requests of this process have the secrets."""
    core = import_module("fsspec.core")
    for scheme in {part.partition("://")[0] for part in _kept()}:
        with suppress(ImportError, ValueError):  # its package is not installed, which the URL itself does not need
            _send_secrets(scheme)
    return core.url_to_fs(url)


def _send_secrets(scheme: str) -> None:
    """Makes the file system of a scheme put secrets back into the URL of each request, or into its arguments."""
    fsspec = import_module("fsspec")
    kind = fsspec.get_filesystem_class(scheme)
    if kind.__module__ == __name__:
        return
    if scheme in WEB:
        methods = {"encode_url": lambda self, url: kind.encode_url(self, reveal_secrets(url))}
    else:
        methods = {"_get_kwargs_from_urls": staticmethod(lambda path: kind._get_kwargs_from_urls(reveal_secrets(path)))}
    safe = type(kind.__name__, (kind,), {**methods, "__module__": __name__})
    fsspec.register_implementation(scheme, safe, clobber=True)


def _replace(text: str, change: Callable[[str], str]) -> str:
    """Returns a text with `change` applied to each URL in it."""
    if "://" not in text:
        return text
    pattern = WHOLE_URL if re.match(SCHEME, text) else URL
    return pattern.sub(lambda match: match[0].replace(match["url"], change(match["url"])), text)


def _split(url: str) -> tuple[str, dict[str, str]]:
    """Returns a URL without its secrets, and them: parts of the URL as they are with those parts as they were."""
    bare = url.rstrip(CLOSING)
    closing, (before, _, after) = url[len(bare) :], bare.partition("://")
    start = _end_of_user(before.lower(), after)
    user, rest = after[:start], after[start:]
    shown = _shown_user(before.lower(), user)
    secrets: dict[str, str] = {}
    if shown != user:
        host = re.split(r"[/?#]", rest, maxsplit=1)[0]
        secrets[f"{before}://{shown}{host}"] = f"{before}://{user}{host}"
    place, mark, query = rest.partition("?")
    query, fragment_mark, fragment = query.partition("#")
    pairs = query.split("&")
    names = [pair.partition("=")[0] for pair in pairs]
    public = [pair for pair, name in zip(pairs, names, strict=True) if not _is_secret(name, names)]
    stored = f"{before}://{shown}{place}"
    if len(public) < len(pairs):
        stored += f"?{'&'.join(public)}" if public else ""
        secrets[stored] = f"{before}://{shown}{place}?{query}"
    else:
        stored += f"{mark}{query}"
    return f"{stored}{fragment_mark}{fragment}{closing}", secrets


def _end_of_user(scheme: str, after: str) -> int:
    """Returns where the host begins in what follows `scheme://`: behind the last @ of a name and a password."""
    authority = re.split(r"[/?#]", after, maxsplit=1)[0]
    user, sign, _ = authority.rpartition("@")
    name, colon, password = user.partition(":")
    if scheme in PLACES or (sign and "," in name):  # a comma in front of any password separates two entries of a list
        return 0
    if sign:
        return len(user) + 1
    name, colon, password = authority.partition(":")
    if colon and not password[:1].isdigit() and "@" in after and "," not in name:  # a / in the password
        return after.rindex("@") + 1
    return 0


def _shown_user(scheme: str, user: str) -> str:
    """Returns what is stored of `name:password@`: of a web address nothing, else the name."""
    name, colon, _ = user.rstrip("@").partition(":")
    if scheme in WEB:
        return ""
    return f"{name}@" if colon and name else "" if colon else user


def _is_secret(name: str, names: list[str]) -> bool:
    """Whether a parameter of a query is, or belongs to, a password, token or signature; `names` are all of them."""
    lower = name.lower()
    words = {part.lower() for part in WORDS.findall(name)}
    if words & SECRET_WORDS or lower.endswith(SECRET_ENDS) or lower.startswith(SIGNED):
        return True
    return "sig" in names and lower in SIGNED_WITH_SIG


def _revealed(url: str, kept: Mapping[str, str]) -> str:
    """Returns a single URL with what was hidden in it."""
    bare, mark, fragment = url.partition("#")
    if "?" in kept.get(bare, ""):
        url = f"{kept[bare]}{mark}{fragment}"
    scheme, _, after = url.partition("://")
    authority = f"{scheme}://{re.split(r'[/?#]', after, maxsplit=1)[0]}"
    if authority in kept and "?" not in kept[authority]:
        url = kept[authority] + url.removeprefix(authority)
    return url


def _kept() -> dict[str, str]:
    return json.loads(os.environ.get(VARIABLE, "{}"))
