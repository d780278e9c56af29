"""The constants as a file, and what they say of a design."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.rtl_fit import START

from edgesdk_converters.errors import TargetError
from edgesdk_targets.fpga.constants_file import Spread, text
from edgesdk_targets.fpga.rtl_constants import Family, doublings, read_constants, shipped
from edgesdk_targets.fpga.rtl_counts import Terms


def test_constants_are_read_as_they_were_written(tmp_path: Path) -> None:
    other = Family(31, 0.6, 0.9, 1.0, 0.5, {"lut": Spread(-0.2, 0.1)})
    known = replace(START, date="2026-11-28", families_apart={"xc7": other}, weights_unknown={"lut": 0.04})
    file = tmp_path / "constants.toml"
    file.write_text(text(known), encoding="utf-8")
    assert read_constants(file) == known


def test_file_that_is_no_table_of_constants_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "constants.toml"
    file.write_text("n = 3", encoding="utf-8")
    with pytest.raises(TargetError, match="missing"):
        read_constants(file)
    file.write_text("[", encoding="utf-8")
    with pytest.raises(TargetError, match="holds no constants"):
        read_constants(file)


def test_shipped_constants_name_their_source_and_every_term_of_the_fit() -> None:
    known = shipped()
    assert known.n >= 150 and known.date and "rtl_results.csv" in known.source
    assert set(known.lut) == set(START.lut) and set(known.ff) == set(START.ff) and set(known.delay_ns) == set(START.delay_ns)
    assert all(value >= 0 for table in (known.lut, known.ff, known.delay_ns) for value in table.values())
    assert all(one.low <= 0 <= one.high for one in known.spread.values())


def test_sums_are_terms_times_constants_and_the_slowest_path_sets_the_period() -> None:
    known = replace(START, lut={"a": 2.0, "b": 0.5}, delay_ns={"clock": 3.0, "spread_out": 0.5, "sum": 1.0, "logic": 4.0})
    assert known.luts([Terms("x", {"a": 10.0}), Terms("y", {"a": 1.0, "b": 4.0})]) == 24.0
    assert known.period_ns([{"sum": 3.0}, {"logic": 1.0}], 400) == 3.0 + 2 * 0.5 + 4.0
    assert doublings(50) == 0.0 and doublings(800) == 3.0
