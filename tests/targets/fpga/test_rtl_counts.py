"""Where memories lie, beside what synthesis made of the same ones, and how counts are kept."""

from __future__ import annotations

import pytest

from edgesdk_targets.fpga.rtl_counts import Terms, placement, slowest


@pytest.mark.parametrize(
    ("kind", "words", "bits", "place", "count"),
    [
        ("ram", 32, 100, "distributed", 50), ("ram", 64, 24, "distributed", 24), ("ram", 64, 36, "block", 1),
        ("ram", 64, 48, "distributed", 48), ("ram", 64, 72, "block", 2), ("ram", 96, 12, "distributed", 18),
        ("ram", 96, 18, "block", 1), ("ram", 96, 48, "block", 2), ("ram", 128, 8, "distributed", 16),
        ("ram", 128, 12, "block", 1),
        ("ram", 256, 4, "distributed", 16), ("ram", 256, 8, "block", 1), ("ram", 256, 100, "block", 3),
        ("rom", 64, 18, "logic", 0), ("rom", 64, 36, "block", 1), ("rom", 64, 64, "logic", 0), ("rom", 64, 120, "logic", 0),
        ("rom", 96, 18, "logic", 0), ("rom", 96, 64, "block", 2), ("rom", 128, 9, "logic", 0), ("rom", 128, 18, "block", 1),
        ("rom", 200, 9, "logic", 0), ("rom", 200, 120, "block", 4), ("rom", 8192, 45, "block", 20),
    ],
)  # fmt: skip
def test_memories_lie_where_yosys_0_23_put_them(kind: str, words: int, bits: int, place: str, count: int) -> None:
    assert placement(words, bits, kind) == (place, count)  # type: ignore[arg-type]


def test_memory_that_is_read_without_a_clock_never_takes_block_ram() -> None:
    assert placement(1024, 36, registered=False)[0] == "distributed"


def test_paths_within_others_are_dropped() -> None:
    paths = [{"sum": 1.0, "carry_bits": 8.0}, {"sum": 2.0, "carry_bits": 9.0}, {"multiplier": 1.0}, {"sum": 2.0, "choice": 0.0}]
    assert slowest(paths) == [{"sum": 2.0, "carry_bits": 9.0}, {"multiplier": 1.0}]


def test_narrow_sums_take_no_carry_cells() -> None:
    found = Terms("x")
    found.sums(4, count=3)
    found.sums(7)
    assert found.lut == {"narrow_sum_bits": 12.0, "carry_bits": 8.0, "carry_chains": 1.0}
