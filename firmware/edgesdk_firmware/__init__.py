"""Firmware: what runs on boards without an operating system, as package data; `path` says where it lies."""

from __future__ import annotations

from pathlib import Path


def path(name: str) -> Path:
    """The file of that name in this package. Raises FileNotFoundError, listing what there is, for an unknown one."""
    root = Path(__file__).parent
    found = root / name
    if found.is_file() and root in found.resolve().parents:
        return found
    known = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".typed"))
    raise FileNotFoundError(f"no firmware file {name!r}; known: {', '.join(known) or 'none yet'}")
