"""Reports: as JSON they follow the published schema, come back unchanged, and put totals first."""

from __future__ import annotations

import copy
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgesdk_converters.errors import BundleError
from edgesdk_targets import report as reports
from edgesdk_targets.figure import Figure, Interval, counted, unavailable
from edgesdk_targets.report import Report, Verdict, schema

ROWS = (
    Figure("latency_ms", 1.25, "estimated", "pi", "its share", layer="conv", interval=Interval(1.0, 2.0, 0.9)),
    Figure("latency_ms", 12.5, "measured", "pi", "timed", percentiles={"p50": 12.5, "p90": 13.0}, n=20),
    Figure("latency_ms", 9.0, "estimated", "pi", "guess", extrapolated=True),
    counted("macs", 2**53 + 1, "counted"),
    unavailable("energy_mj", "pi", "no meter"),
)


@pytest.fixture
def full() -> Report:
    return Report(
        "net", "raspberry-pi", "raspberry-pi-4", "abc", ROWS, Verdict("pending", "not yet"), {"cpu": "x", "cores": 2},
        ("first", "second"), ({"tried": 1},),
    )  # fmt: skip


def test_totals_come_first_and_keep_their_order(full: Report) -> None:
    layers = [row.layer for row in full.rows]
    assert layers == [None, None, None, None, "conv"]
    assert [row["name"] for row in full.to_json()["rows"]] == ["latency_ms", "latency_ms", "macs", "energy_mj", "latency_ms"]


def test_json_and_back_is_the_same_report(full: Report) -> None:
    text = json.dumps(full.to_json())
    again = Report.from_json(json.loads(text))
    assert again == full
    assert json.dumps(again.to_json()) == text
    assert type(again.rows[2].value) is int


def test_json_follows_the_schema(full: Report) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(full.to_json(), schema())
    jsonschema.validate(Report("m", "t", "d", "", ()).to_json(), schema())


def row(data: dict[str, Any], provenance: str) -> dict[str, Any]:
    return next(r for r in data["rows"] if r["provenance"] == provenance and not r["extrapolated"])


MUTATIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no provenance": lambda d: d["rows"][0].pop("provenance"),
    "unknown provenance": lambda d: d["rows"][0].update(provenance="guessed"),
    "no method": lambda d: d["rows"][0].pop("method"),
    "empty method": lambda d: d["rows"][0].update(method=""),
    "empty where": lambda d: d["rows"][0].update(where=""),
    "empty name": lambda d: d["rows"][0].update(name=""),
    "value as text": lambda d: d["rows"][0].update(value="3"),
    "measured without value": lambda d: row(d, "measured").update(value=None),
    "measured without n": lambda d: row(d, "measured").update(n=None),
    "measured with n 0": lambda d: row(d, "measured").update(n=0),
    "unavailable with value": lambda d: row(d, "unavailable").update(value=1),
    "estimate without interval": lambda d: row(d, "estimated").update(interval=None),
    "interval without level": lambda d: row(d, "estimated")["interval"].pop("level"),
    "level of 1": lambda d: row(d, "estimated")["interval"].update(level=1),
    "unknown field": lambda d: d["rows"][0].update(colour="red"),
    "unknown top": lambda d: d.update(colour="red"),
    "no rows": lambda d: d.pop("rows"),
    "other format": lambda d: d.update(format="edgesdk-report/2"),
    "contract broken": lambda d: d["contract"].update(status="broken"),
    "no contract": lambda d: d.pop("contract"),
    "notes as text": lambda d: d.update(notes="x"),
}


@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_a_report_that_says_too_little_is_refused_by_the_schema(full: Report, mutation: str) -> None:
    data = copy.deepcopy(full.to_json())
    MUTATIONS[mutation](data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema())


@pytest.mark.parametrize("mutation", sorted(MUTATIONS.keys() - {"no contract"}))
def test_a_report_that_says_too_little_is_refused_when_read(full: Report, mutation: str) -> None:
    data = copy.deepcopy(full.to_json())
    MUTATIONS[mutation](data)
    with pytest.raises(BundleError, match="report"):
        Report.from_json(data)


def test_an_extrapolated_estimate_needs_no_interval(full: Report) -> None:
    data = full.to_json()
    marked = next(r for r in data["rows"] if r["extrapolated"])
    assert marked["interval"] is None
    jsonschema.validate(data, schema())


@pytest.mark.parametrize("data", [None, [], {}, "text", {"format": "edgesdk-report/1"}])
def test_what_is_no_report_is_a_bundle_error(data: object) -> None:
    with pytest.raises(BundleError):
        Report.from_json(data)


def test_find_gives_the_total_of_a_segment(full: Report) -> None:
    assert full.find("latency_ms") is full.rows[0]
    assert full.find("latency_ms", "device") is None
    assert full.find("nothing") is None


def test_saving_replaces_in_one_step_and_follows_the_umask(tmp_path: Path, full: Report) -> None:
    place = tmp_path / "a.report.json"
    before = os.umask(0o022)
    try:
        full.save(place)
        Report("m", "t", "d", "", ()).save(place)
    finally:
        os.umask(before)
    assert Report.from_json(json.loads(place.read_text())).model == "m"
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [place]


def test_a_report_that_cannot_be_written_is_one_error_and_leaves_the_older(
    tmp_path: Path, full: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a.report.json"
    full.save(place)
    before = place.read_bytes()
    for failure, expected in ((OSError(28, "No space left on device"), BundleError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(_: int, failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr(reports.os, "fsync", fail)
        with pytest.raises(expected):
            Report("m", "t", "d", "", ()).save(place)
        assert place.read_bytes() == before
        assert list(tmp_path.iterdir()) == [place]
    with pytest.raises(BundleError, match="cannot be written: No such file or directory"):
        full.save(tmp_path / "no" / "a.json")


def test_a_place_is_judged_before_there_is_anything_to_write(tmp_path: Path) -> None:
    reports.check_place(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("x")
    reports.check_place(tmp_path / "old.json")
    beyond = Path("/proc/r.json"), "no file can be made in /proc"  # which root may write in, by its permissions
    for place, told in ((tmp_path / "no/r.json", "there is no folder"), (tmp_path, "it is a folder"), beyond):
        with pytest.raises(BundleError, match=told):
            reports.check_place(place)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"] and (tmp_path / "old.json").read_text() == "x"
