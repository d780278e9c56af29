"""The constants that ship: they say where they come from, are positive, and survive being written and read."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from edgesdk_converters.errors import TargetError
from edgesdk_targets.fpga.constants_file import text
from edgesdk_targets.fpga.hls4ml_constants import Departure, Placement, area, clock, cycles, read_constants, shipped
from edgesdk_targets.fpga.hls4ml_terms import FixedLayer, cost


def test_shipped_constants_say_where_they_come_from() -> None:
    found = shipped()
    assert "wa-hls4ml" in found.source and "2e49d33b" in found.source and found.date
    assert found.n == found.regions[0].n > 100 and found.families > 50


def test_all_constants_are_positive_and_intervals_hold_their_value() -> None:
    found = shipped()
    assert all(value > 0 for table in (found.lut, found.ff, found.scale, found.clock) for value in table.values())
    assert all(spread.low <= 0 <= spread.high for spread in found.spread.values())
    assert all(0 <= one.block <= one.seen for one in found.placement.values())
    assert set(found.spread) == {"lut", "ff", "bram", "clock"}


@pytest.mark.parametrize("strategy", ["resource", "latency"])
@pytest.mark.parametrize("kind", ["dense", "conv2d", "activation", "table", "softmax", "pool", "add"])
def test_every_count_has_its_constant(kind: str, strategy: str) -> None:
    known = shipped()
    for reuse in (1, 8, 64, 1024):
        found = cost(FixedLayer("x", kind, 64, 64, 8, positions=9 if kind == "conv2d" else 1, kernel=4), reuse, strategy, 5.0)  # type: ignore[arg-type]
        assert set(known.counts("lut", found)) <= set(known.lut) and set(known.counts("ff", found)) <= set(known.ff)
        assert found.memory.placement in ("", *known.placement)


def test_few_results_make_nothing_certain() -> None:
    assert Placement(0, 0).share == 0.5
    assert Placement(0, 4).share == pytest.approx(0.1) and Placement(4, 4).share == pytest.approx(0.9)


def test_written_constants_are_read_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text(shipped()), encoding="utf-8")
    assert read_constants(tmp_path / "mine.toml") == shipped()


@pytest.mark.parametrize("content", ["", "source = 3", "not toml", None])
def test_other_files_are_refused_by_name(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(TargetError, match=r"mine\.toml"):
        read_constants(path)


def test_quotes_and_line_breaks_in_a_source_survive(tmp_path: Path) -> None:
    odd = replace(shipped(), source='a "b" \\c')
    (tmp_path / "mine.toml").write_text(text(odd), encoding="utf-8")
    assert read_constants(tmp_path / "mine.toml").source == 'a "b" \\c'


def test_departures_widen_together_by_less_than_their_product() -> None:
    one, other = Departure("a", 2.0, 1.1), Departure("b", 2.0, 1.0)
    assert area([]) == cycles([]) == 1.0
    assert area([one]) == pytest.approx(2.0) and cycles([one, other]) == pytest.approx(1.1)
    assert area([one, other]) == pytest.approx(2 ** math.sqrt(2))


def test_what_widens_area_widens_the_clock_by_its_fourth_root_and_another_clock_one_way() -> None:
    assert clock([]) == (1.0, 1.0)
    assert clock([Departure("a", 16.0, 1.1)]) == pytest.approx((2.0, 2.0))
    assert clock([Departure("slow", 16.0, 1.1, 3.0)]) == pytest.approx((2.0, 6.0))
    assert clock([Departure("fast", 16.0, 1.1, 0.1)]) == pytest.approx((20.0, 2.0))
