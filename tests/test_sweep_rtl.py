"""The sweep goes on where it was stopped, and its designs are the same at every call."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from edgesdk_converters.integer_program import Conv, Dense, Leaky, Pool, Sum, Table

from . import sweep_rtl
from .sweep_rtl_designs import build, wanted


def test_designs_are_many_of_many_networks_and_the_same_at_every_call() -> None:
    designs = wanted()
    assert [one.name for one in designs] == [one.name for one in wanted()]
    assert len({one.name for one in designs}) == len(designs) >= 200
    assert len({one.network for one in designs}) >= 100
    assert {one.form for one in designs} == {"unrolled", "streaming", "folded", "auto"}
    assert {one.bits for one in designs} == set(range(2, 11))


def test_every_row_of_the_table_is_a_design_of_the_sweep_and_there_once() -> None:
    rows = collections.Counter(row["name"] for row in sweep_rtl.read())
    assert set(rows.values()) == {1}
    assert set(rows) <= {one.name for one in wanted()}
    assert sweep_rtl.TABLE.stat().st_size < 300_000


def test_network_in_short_becomes_its_operations() -> None:
    program = build("3x8x8-c4k3s2l-r3-w3t-m2-d5-x", 5, "half_up", 0)
    kinds = collections.Counter(type(one) for one in program.operations)
    assert (kinds[Conv], kinds[Dense], kinds[Leaky], kinds[Sum], kinds[Table], kinds[Pool]) == (3, 1, 1, 1, 1, 1)
    assert program.tensors[program.outputs[0]].shape == (1,)


def test_rows_are_appended_and_changed_under_one_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_rtl, "claims", lambda: tmp_path / "claims")
    table = tmp_path / "table.csv"
    for name in ("a", "b"):
        sweep_rtl.append({"name": name, "status": "done"}, table)
    sweep_rtl.change("a", {"xc7": "1 2 3 4"}, table)
    assert [(row["name"], row["xc7"]) for row in sweep_rtl.read(table)] == [("a", "1 2 3 4"), ("b", "")]
    assert table.read_text(encoding="utf-8").count("status") == 1


def test_design_that_is_claimed_is_left_to_who_has_it(tmp_path: Path) -> None:
    with sweep_rtl.locked(tmp_path / "claim") as mine:
        assert mine
        with sweep_rtl.locked(tmp_path / "claim", wait=False) as theirs:
            assert not theirs
    with sweep_rtl.locked(tmp_path / "claim", wait=False) as later:
        assert later
