"""The process of a measurement: a task on stdin, lines of JSON out, a report or one error as the last, and nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgesdk_targets import board_facts
from edgesdk_targets.bundle import open_bundle
from edgesdk_targets.report import Report

from ..targets.test_packed import pack
from .conftest import tree


def job(
    bundle: Path, corner: Path, environment: dict[str, str] | None = None, **options: Any
) -> tuple[list[dict[str, Any]], int]:
    """What the process says, and how it ends."""
    task = {
        "bundle": str(bundle), "data": None, "runs": 3, "threads": 1, "allow_fallback": False, "search": False, "minutes": 0.0,
        "cold": False,
    } | options  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from edgesdk.agent_job import main; sys.exit(main())"], input=json.dumps(task),
        capture_output=True, text=True, check=False, cwd=corner, env=os.environ | (environment or {}),
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode


@pytest.fixture
def packed_bundle(template: Path, tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return pack(open_bundle(template / "older.edge"), tmp_path / "store")


def test_a_report_with_golden_vectors_is_the_last_line_and_the_corner_stays_empty(packed_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "corner").mkdir()
    before = tree(tmp_path)
    said, code = job(packed_bundle, tmp_path / "corner")
    assert code == 0 and all("progress" in line for line in said[:-1])
    report = Report.from_json(said[-1]["report"])
    latency, repeat = report.find("latency_ms"), report.find("relative_error", "repeat")
    assert latency is not None and latency.n == 3
    assert repeat is not None and repeat.provenance == "measured" and repeat.value is not None and repeat.value <= 1e-4
    assert tree(tmp_path) == before


def test_an_error_is_the_last_line_with_its_class(packed_bundle: Path, tmp_path: Path) -> None:
    packed_bundle.write_bytes(bytes(packed_bundle.stat().st_size))
    said, code = job(packed_bundle, tmp_path)
    assert code == 1 and said[-1]["error"]["kind"] == "BundleError" and said[-1]["error"]["hint"] == "send the bundle again"


def test_under_an_emulator_what_is_computed_is_emulated_and_nothing_is_timed(packed_bundle: Path, tmp_path: Path) -> None:
    said, code = job(packed_bundle, tmp_path, {board_facts.EMULATOR: "a simulator"})
    assert code == 0
    rows = {(row["name"], row["segment"]): row for row in said[-1]["report"]["rows"]}
    assert (
        rows["relative_error", "repeat"]["provenance"] == "emulated"
        and rows["latency_ms", "whole"]["provenance"] == "unavailable"
    )
    assert {row["provenance"] for row in rows.values() if row["where"] != "artifact"} == {"emulated", "unavailable"}
    said, code = job(packed_bundle, tmp_path, {board_facts.EMULATOR: "a simulator"}, minutes=1.0)
    assert code == 1 and "nothing timed can be measured" in said[-1]["error"]["message"]
