"""The sweep goes on where it was stopped, and its designs are the same at every call."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgesdk_converters.integer_program import Conv, Curve, Dense, LayerNorm, Leaky, Pool, Softmax, Sum, Table

from . import sweep_rtl
from .sweep_rtl_designs import FUNCTION_REACH, FUNCTIONS, LISTED, Wanted, build, made_of, wanted


def test_designs_are_many_of_many_networks_and_the_same_at_every_call() -> None:
    designs = wanted()
    assert [one.name for one in designs] == [one.name for one in wanted()]
    assert len({one.name for one in designs}) == len(designs) >= 200
    assert len({one.network for one in designs}) >= 100
    assert {one.form for one in designs} == {"unrolled", "streaming", "folded", "auto"}
    assert {one.bits for one in designs} == set(range(2, 17))


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


def test_designs_listed_by_hand_have_what_random_ones_lack_in_many_widths() -> None:
    def bits(operation: str, designs: Sequence[Wanted]) -> set[int]:
        return {one.bits for one in designs if operation in made_of(one.name)[1]}

    listed, random = LISTED, [one for one in wanted() if one not in LISTED]
    assert len(random) == len(wanted()) - len(listed) and len({one.network for one in listed}) >= 20
    for operation, least, most in (("LayerNorm", 4, 10), ("Softmax", 4, 12), ("Curve", 13, 16)):
        assert not bits(operation, random)
        assert (min(bits(operation, listed)), max(bits(operation, listed))) == (least, most)
    assert {6, 7, 8, 9, 10, 11, 12} <= bits("Table", listed)
    assert {one.form for one in listed} == {"unrolled", "streaming", "folded", "auto"}


def test_bits_of_a_design_are_those_that_its_estimate_finds() -> None:
    for one in LISTED[::4]:
        made = one.design()
        ports = [stream.codes.bits for stream in (*made.inputs, *made.outputs)]
        assert made_of(one.name)[0] == max(*ports, *(layer.weight_bits for layer in made.layers))


@pytest.mark.parametrize("bits", [6, 14])
def test_functions_behind_parts_are_near_their_own_values(bits: int) -> None:
    """As what reaches FUNCTION_REACH where the source ends, within what its rounding and a step of the source change."""
    for letter, (name, computed) in FUNCTIONS.items():
        program = build(f"4-d3{letter}", bits, "half_even", 1)
        kept = program.run({"x0": np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, (50, 4))}, keep=True)
        op = next(one for one in program.operations if isinstance(one, (Curve, Table)))
        assert op.function == name
        source, result = program.tensors[op.source], program.tensors[op.result]
        unit = FUNCTION_REACH / (source.step * max(-source.low, source.high))
        wanted_ones = computed(kept[op.source] * source.step * unit) / unit
        step = max(result.step, 2.0 ** (np.ceil(np.log2(np.abs(wanted_ones).max())) - bits + 1))
        assert np.abs(kept[op.result] * result.step - wanted_ones).max() <= step


def test_residual_block_adds_to_what_it_reads() -> None:
    program = build("4x8-b12-n-d5-e", 6, "half_even", 0)
    kinds = collections.Counter(type(one) for one in program.operations)
    assert (kinds[LayerNorm], kinds[Dense], kinds[Table], kinds[Sum], kinds[Softmax]) == (2, 3, 1, 1, 1)
    added = next(one for one in program.operations if isinstance(one, Sum))
    assert added.sources[1] == program.inputs[0] and program.tensors[added.result].shape == (4, 8)
    assert program.tensors[program.outputs[0]].shape == (5,)


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
