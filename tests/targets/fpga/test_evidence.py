"""What is said of levels that cannot agree to the bit: by how much, and within which bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgesdk_converters.integer_curves import Curve, LayerNorm
from edgesdk_converters.integer_program import IntegerProgram, Softmax
from edgesdk_converters.integer_tables import drawn, powers
from edgesdk_targets.fpga import evidence
from edgesdk_targets.fpga.evidence import distances

from .integer_nets import Net, dense_net
from .test_normalised import norm


def mixed() -> IntegerProgram:
    """A norm, a softmax of what is rounded behind it, and a curve of 13 bits."""
    net = Net(4, 8)
    normal = norm(net, net.input((3, 6), 8))
    rounded = net.round(normal, 8, signed=True, drop=-5 - net.tensors[normal].exponent)
    known = net.tensors[rounded]
    net.tensors["soft"] = replace(known, name="soft", exponent=-8, low=0, high=255)
    net.operations.append(Softmax("head", rounded, "soft", powers(known, 14), 8))
    wide = net.input((4,), 13, -9)
    found, made = drawn("squash", net.tensors[wide], "curved", "Tanh", np.tanh, -8)
    net.operations.append(found)
    net.tensors["curved"] = made
    return net.program("soft", net.round("curved", 9, drop=-8 - made.exponent, signed=True))


def test_each_layer_that_comes_near_a_function_has_its_distance_and_its_bound() -> None:
    program = mixed()
    rows = {row.layer: row for row in distances(program)}
    by_kind = {type(op): op for op in program.operations}
    assert set(rows) == {by_kind[kind].node for kind in (LayerNorm, Softmax, Curve)}
    for row in rows.values():
        assert (row.name, row.provenance, row.segment) == ("max_abs_error", "measured", "integers")
        assert row.value is not None and row.value > 0
    normal, curve = by_kind[LayerNorm], by_kind[Curve]
    assert isinstance(normal, LayerNorm) and isinstance(curve, Curve)
    row = rows[normal.node]
    assert "LayerNormalization" in row.method and f"bound beside exact arithmetic: {normal.error:.3f} steps" in row.method
    step = next(program.tensors[op.result].step for op in program.operations if getattr(op, "source", "") == normal.result)
    assert row.value is not None and row.value / step <= normal.error + 0.01, "float32 has errors too, in 8 bits small ones"
    row = rows["squash"]
    assert row.value == curve.error * 2.0**-8 and "over every code" in row.method and row.n == 1 << 13
    assert all(one.n == 300 for name, one in rows.items() if name != "squash")
    row = rows["head"]
    assert row.value is not None and row.value * 256 <= 0.5625 and "rounding included" in row.method


def test_errors_are_in_steps_of_the_finest_rounding_behind() -> None:
    net = Net(4, 8)
    wide = net.input((4,), 13, -9)
    curve, codes = drawn("squash", net.tensors[wide], "curved", "Tanh", np.tanh, -8)
    net.operations.append(curve)
    net.tensors["curved"] = codes
    normal = norm(net, net.input((3, 6), 8))
    ends = [net.round(name, 9, drop=-e - net.tensors[name].exponent, signed=True) for name in ("curved", normal) for e in (4, 8)]
    program = net.program(*ends)
    assert [program.tensors[name].exponent for name in ends] == [-4, -8, -4, -8]
    rows = {row.layer: row for row in distances(program)}
    every = np.arange(-(1 << 12), 1 << 12)
    off = np.abs(curve.of(every) * codes.step - np.tanh(every * 2.0**-9)).max()
    assert rows["squash"].value == curve.error * 2.0**-8 == pytest.approx(off, rel=1e-6)
    assert all(f"steps of {2.0**-8:g}" in row.method for row in rows.values()) and len(rows) == 2


def test_a_broken_root_shows_in_its_distance() -> None:
    program = mixed()
    op = next(op for op in program.operations if isinstance(op, LayerNorm))
    base = op.root.base.copy()
    base[len(base) // 2 :] += 1 << op.root.bits - 4
    wrong = replace(op, root=replace(op.root, base=base))
    broken = replace(program, operations=tuple(wrong if one is op else one for one in program.operations))
    right, off = (next(row.value or 0.0 for row in distances(one) if row.layer == op.node) for one in (program, broken))
    assert off > 10 * right


def test_exact_networks_have_no_such_rows() -> None:
    assert not list(distances(dense_net((4, 3), 5, "half_up")))


def test_large_networks_are_held_against_floats_over_fewer_inferences(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(1, 6)
    program = net.program(norm(net, net.input((5, 4), 6)))
    for elements, count in ((10**6, 300), (4_000, 100), (1, 20)):
        monkeypatch.setattr(evidence, "NEAR_ELEMENTS", elements)
        assert [row.n for row in distances(program)] == [count]
