"""One measurement of an agent, in a process of its own: the same `measure` as everywhere, golden vectors, and the board's facts.

The task comes as JSON on stdin; what is told goes out as lines of JSON, the report or the error as the last.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgesdk_converters.errors import ContractBroken, EdgeError
from edgesdk_targets import board_facts, golden, runner
from edgesdk_targets import measure as measuring
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.figure import Figure
from edgesdk_targets.report import Report

from . import api


def main() -> int:
    """The measuring process of an agent."""
    with contextlib.suppress(OSError):  # where memory ends, this is to go before the agent does
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    task = json.load(sys.stdin)
    told: dict[str, Any]
    try:
        told = {"report": measured(task).to_json()}
    except EdgeError as error:
        told = {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}
    except MemoryError:
        told = {"error": {"kind": "DeviceError", "message": "the board has not enough memory for it", "hint": ""}}
    print(json.dumps(told), flush=True)
    return int("error" in told)


def measured(task: Mapping[str, Any]) -> Report:
    """The report of a task. Raises EdgeError, ContractBroken where golden vectors or the accuracy promised are not reached."""
    path = Path(task["bundle"])
    options = {name: task[name] for name in ("runs", "threads", "allow_fallback", "search", "minutes", "cold", "data")}
    report = api.measure(path, **options, progress=_say)
    _say("running the golden vectors")
    rows = parity(measuring.opened(path), int(task["threads"]), bool(task["allow_fallback"]), report)
    return replace(report, rows=(*report.rows, *rows))


def parity(bundle: Bundle, threads: int, allow_fallback: bool, report: Report) -> tuple[Figure, ...]:
    """Errors of the golden vectors on this board, against the source and against the artefact where it was made."""
    loaded = runner.load(bundle, runner.RunOptions(threads, allow_fallback))
    try:
        result = golden.compare(bundle, loaded)
    finally:
        loaded.close()
    if result is None:
        return ()
    if not result.holds:
        raise ContractBroken(
            f"on {loaded.facts} the outputs are {result.artifact_relative_error:.2g} relative from the golden ones; "
            f"allowed: {result.tolerance:g}",
            "this board's runtime computes something else than the one the bundle was made with",
        )
    how, where, n = board_facts.provenance(), measuring.place(report.machine), result.cases
    source = f"against the source, {n} golden inputs, {loaded.facts}"
    own = f"against the artefact's own outputs where it was made; allowed {result.tolerance:g}"
    return (
        Figure("relative_error", result.source_relative_error, how, where, source, n=n),
        Figure("max_abs_error", result.source_abs_error, how, where, source, n=n),
        Figure("relative_error", result.artifact_relative_error, how, where, own, segment="repeat", n=n),
    )


def _say(message: str) -> None:
    print(json.dumps({"progress": message}), flush=True)
