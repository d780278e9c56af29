"""What the refit of the flow rtl's constants writes beside them, and what it makes of networks that cannot be laid out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgesdk_converters.errors import Unsupported
from edgesdk_targets.fpga.rtl_constants import shipped

from . import sweep_rtl, sweep_rtl_designs
from .bench_rtl_estimate import CONSTANTS, OTHER_SEEDS, SEEDED_EVERY, head, weights_unknown
from .rtl_fit import START


def test_head_tells_what_is_not_fitted_and_what_is_left_out() -> None:
    rows = sweep_rtl.read()
    told = head(rows, shipped())
    assert "lut.logic_ram_bits, ff.logic_ram_bits, delay_ns.rom." in told
    done = sum(row["status"] == "done" for row in rows)
    assert f"Left out of {len(rows)} designs: {len(rows) - done} that were stopped at the limit of 240 s, 0 " in told
    assert f"{done - shipped().n} with constant parts" in told
    assert all(line.startswith("# ") and len(line) <= 130 for line in told.splitlines())
    moved = replace(shipped(), lut=shipped().lut | {"logic_ram_bits": START.lut["logic_ram_bits"] * 1.01})  # type: ignore[operator]
    assert "lut.logic_ram_bits" not in head(rows, moved)
    assert CONSTANTS.read_text(encoding="utf-8").startswith(told)


def test_a_network_with_too_few_designs_says_nothing_of_what_weights_change(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [row["name"] for row in sweep_rtl.read() if row["status"] == "done" and row["name"].startswith(("4-d", "6-d", "5-d"))]
    first, second = (next(one for one in sweep_rtl_designs.wanted() if one.name == name) for name in names[:2])
    real = sweep_rtl_designs.Wanted.design

    def fails(one: Any) -> Any:
        if one.network == second.network and one.seed != OTHER_SEEDS[0]:
            raise Unsupported("x", "n", "o", "no layout")
        return real(one)

    def rows(*found: Any) -> list[dict[str, str]]:
        return [{"name": one.name} for one in found for _ in range(SEEDED_EVERY)]

    assert first.network != second.network
    alone = weights_unknown(rows(first), shipped())
    monkeypatch.setattr(sweep_rtl_designs.Wanted, "design", fails)
    assert weights_unknown(rows(first, second), shipped()) == alone and alone["lut"] > 0
