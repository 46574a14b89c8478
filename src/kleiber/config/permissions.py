"""What the reader's command line permits a config that was read from disk to do.

A command permits what its own config has, and what --data names. The processes that it starts permit what their configs
have, which it has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from kleiber.config.url_secrets import hide_secrets
from kleiber.types.access import Access

Permission = tuple[Access, str]  # what is done with a value, and the value


class _Reader:
    """The permissions of this process."""

    permissions: frozenset[Permission] = frozenset()


@contextmanager
def reader_permissions() -> Iterator[None]:
    """Context of a command, after which the permissions are those from before."""
    before = _Reader.permissions
    try:
        yield
    finally:
        _Reader.permissions = before


def permit(permissions: Iterable[Permission]) -> None:
    """Adds permissions."""
    _Reader.permissions |= {*permissions}


def permit_data(values: Iterable[str]) -> None:
    """Permits to read data that the reader has named: a URL, a pattern or a large folder."""
    permit((Access.READ, hide_secrets(value)) for value in values)


def is_permitted(permission: Permission) -> bool:
    """Whether the reader has permitted something."""
    return permission in _Reader.permissions


def permitted_data() -> list[str]:
    """Returns the names of data that are permitted, in order."""
    return sorted(value for access, value in _Reader.permissions if access == Access.READ)
