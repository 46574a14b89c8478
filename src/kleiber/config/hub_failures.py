"""Why the Hugging Face hub did not give a data set or a model, in a line that says what to do.

It is imported once something has failed, so that an ordinary run does not load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

BROKEN = {"TransportError", "ConnectionError", "TimeoutError"}  # errors of any client library when a connection ends


def failure(error: BaseException, name: str, kind: str) -> str | None:
    """Returns why the hub did not give NAME, and what to do, by the errors behind an error; None for other errors.

    kind  `data set` or `model`
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _causes(error):
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause.response.status_code, cause.response.headers, name, kind)
        if type(cause).__name__ == "DatasetNotFoundError":  # of `datasets`, which keeps no answer of the hub
            return _refusal(404, {}, name, kind)
    for cause in _causes(error):
        names = {base.__name__ for base in type(cause).__mro__}
        if names & BROKEN:
            return (
                f"the connection to {constants.ENDPOINT} broke ({cause}): repeat the command, which keeps whole files"
            )
    return None


def _refusal(code: int, headers: Mapping[str, str], name: str, kind: str) -> str:
    if code == 404 or headers.get("X-Error-Code") == "RepoNotFound":
        return (
            f"the hub has no {kind} {name} that everybody may read: check the name; for a private one set HF_TOKEN, or "
            "run `hf auth login`"
        )
    if code in (401, 403):
        return (
            f"the hub gives {name} only to accounts with access (HTTP {code}): accept the terms on its page, and set "
            "HF_TOKEN, or run `hf auth login`"
        )
    if code == 429:
        wait = headers.get("Retry-After")
        when = f"in {wait} s" if wait else "in some minutes"
        return (
            f"the hub takes no more requests from here (HTTP 429): try again {when}, or set HF_TOKEN, which allows more"
        )
    if code >= 500:
        return f"the hub has a fault of its own (HTTP {code}): try again later"
    return f"the hub refuses it (HTTP {code}: {headers.get('X-Error-Message', 'no reason given')})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and those that led to it."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
