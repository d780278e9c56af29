"""Report: the figures of one bundle, model or measurement, and the verdict of its contract; as JSON with a schema."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgesdk_converters import fields
from edgesdk_converters.errors import BundleError

from .figure import Figure

FORMAT = "edgesdk-report/1"
Status = Literal["none", "passed", "pending"]


@dataclass(frozen=True)
class Verdict:
    """How an accuracy contract came out. `pending`: the runtime that will run it is not here. A broken one is an error."""

    status: Status = "none"
    text: str = "no accuracy contract: give --data FILE --max-drop POINTS"


@dataclass(frozen=True)
class Report:
    """Figures with what they are about; totals come first. `machine` is where the measured ones were measured."""

    model: str
    target: str
    device: str
    bundle: str
    rows: tuple[Figure, ...]
    contract: Verdict = field(default_factory=Verdict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    candidates: tuple[Any, ...] = ()
    format: str = FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda figure: figure.layer is not None)))

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data after `report.schema.json`; every field of every row is there."""
        rows = []
        for row in self.rows:
            data = {name: getattr(row, name) for name in row.__dataclass_fields__}
            data["interval"] = None if row.interval is None else fields.plain(row.interval)
            data["percentiles"] = dict(row.percentiles)
            rows.append(data)
        return {
            "format": self.format,
            "model": self.model,
            "target": self.target,
            "device": self.device,
            "bundle": self.bundle,
            "contract": {"status": self.contract.status, "text": self.contract.text},
            "machine": dict(self.machine),
            "notes": list(self.notes),
            "candidates": list(self.candidates),
            "rows": rows,
        }

    @classmethod
    def from_json(cls, data: object) -> Report:
        """Raises BundleError for anything that is no report of this format."""
        try:
            report = fields.read(cls, data, "report", BundleError)
        except ValueError as error:  # a figure that its constructor refuses
            raise BundleError(f"report: {error}", "it was not written by edgesdk") from error
        if report.format != FORMAT:
            raise BundleError(f"report has format {report.format!r}; this edgesdk reads {FORMAT!r}")
        return report

    def to_bytes(self) -> bytes:
        """The report as a JSON file."""
        return (json.dumps(self.to_json(), indent=1) + "\n").encode()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; an older file is replaced in one step."""
        write_beside(Path(path), self.to_bytes())

    def find(self, name: str, segment: str = "whole") -> Figure | None:
        """The total of that name, None where there is no such row."""
        return next((r for r in self.rows if r.name == name and r.layer is None and r.segment == segment), None)


def schema() -> dict[str, Any]:
    """The published JSON schema of reports."""
    text = Path(__file__).with_name("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check_place(path: Path) -> None:
    """Raise BundleError where no file can be written, before hours go into it: one is made there, and removed."""
    folder = path.parent
    if not folder.is_dir():
        raise BundleError(f"{path} cannot be written: there is no folder {folder}", "make it, or give another place")
    if path.is_dir():
        raise BundleError(f"{path} cannot be written: it is a folder", "give the name of a file")
    check_can_make(path, "give another place, or change its permissions")


def check_can_make(path: Path, hint: str) -> None:
    """Raise BundleError with that hint where no file can be made beside `path`: one is made, and removed."""
    trial = temporary(path)
    try:
        open(trial, "xb").close()
    except OSError as error:
        told = f"{path} cannot be written: no file can be made in {path.parent}: {error.strerror or error}"
        raise BundleError(told, hint) from error
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def write_beside(path: Path, data: bytes) -> None:
    """Write a file beside its place, then rename. Raises BundleError when the disk or the directory refuses."""
    new = temporary(path)
    try:
        with open(new, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, path)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error.strerror}", "check free space and permissions") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def temporary(path: Path) -> Path:
    """A name beside a file's or a bundle's of what is to be renamed to it; `bundle.write` sweeps what dead writers left there."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
