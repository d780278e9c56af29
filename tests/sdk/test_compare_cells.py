"""Cells of the page: the value in its unit, the interval, the letter of the provenance, and behind it how it was made."""

from __future__ import annotations

import pytest

from edgesdk.compare_cells import cell, count_cell, tag, value_range
from edgesdk_targets.figure import Figure, Interval, counted, unavailable

ESTIMATE = Figure(
    "latency_ms", 79.918, "estimated", "raspberry-pi-4", "by <costs>", interval=Interval(49.53, 128.95, 0.9), extrapolated=True
)


def test_an_estimate_shows_value_interval_and_mark_and_opens_to_its_method() -> None:
    text = cell(ESTIMATE)
    assert ">79.9 ms <" in text and "49.5&ndash;129" in text and ">E*<" in text
    assert "90% of the cases: 49.5 to 129 ms" in text and "by &lt;costs&gt;" in text and "where: raspberry-pi-4" in text


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        (counted("weight_bytes", 99_632, "counted"), "99.6 kB"),
        (counted("weight_bytes", 18_524_040, "counted"), "18.5 MB"),
        (Figure("accuracy", 0.9333, "measured", "here", "top-1", n=2000), "93.3 %"),
        (Figure("energy_mj", 3.87, "measured", "here", "sensor", n=3), "3.87 mJ"),
    ],
)
def test_values_are_in_units_that_people_read(row: Figure, shown: str) -> None:
    assert f">{shown} <" in cell(row) and f"n = {row.n:,}" in cell(row) and ">M<" in cell(row)


def test_a_gap_says_why_in_its_title_and_when_opened() -> None:
    text = cell(unavailable("energy_mj", "x", 'no "power" <known>'))
    assert text.count("no &quot;power&quot; &lt;known&gt;") == 2 and 'class="cell gap"' in text and ">why<" in text


def test_counts_are_in_thousands_with_all_digits_behind_them() -> None:
    row = Figure("cycles", 438_991, "estimated", "x", "schedule", interval=Interval(415_645, 463_596, 0.8))
    assert ">439k " in count_cell(row) and "416k&ndash;464k" in count_cell(row) and "438,991; 80% of the cases" in count_cell(row)


def test_no_two_provenances_share_a_letter_and_each_has_a_class_of_its_own() -> None:
    tags = [tag(name) for name in ("measured", "emulated", "simulated", "tool-reported", "estimated", "unavailable")]
    assert len({text.split(">")[1] for text in tags}) == len({text.split('"')[1] for text in tags}) == 6


def test_an_interval_of_one_value_is_not_told() -> None:
    row = Figure("dsp", 45, "estimated", "x", "rule", interval=Interval(45, 45, 0.8))
    assert value_range(row) == "" and value_range(ESTIMATE) != ""
