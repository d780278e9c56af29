"""Names to classes: a table of ours first, then what installed packages announce under an entry-point group."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import EdgeError


def find(table: Mapping[str, str], group: str, name: str, error: type[EdgeError]) -> type[Any]:
    """The class behind a name; `table` maps names to "module:Class".

    Raises `error` for an unknown name (listing the known ones) and for a plugin that does not import.
    """
    location = table.get(name)
    if location is None:
        entry = _entries(group).get(name)
        if entry is None:
            raise error(f"unknown {group.rsplit('.', 1)[-1].rstrip('s')} {name!r}; known: {', '.join(known(table, group))}")
        location = entry.value
    module, _, attribute = location.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except EdgeError:
        raise
    except (ImportError, AttributeError, SyntaxError, NameError, TypeError, ValueError, RuntimeError, OSError) as cause:
        raise error(f"{name!r} is announced as {location}, which does not import: {cause}", "repair or uninstall it") from cause
    if not isinstance(found, type):
        raise error(f"{name!r} is announced as {location}, which is no class")
    return found


def known(table: Mapping[str, str], group: str) -> tuple[str, ...]:
    """All names, ours first; nothing is imported."""
    return (*table, *sorted(name for name in _entries(group) if name not in table))


def _entries(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}
