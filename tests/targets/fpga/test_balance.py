"""Lanes of folded layers: they divide the layer, keep the pace, and stay within the budget."""

from __future__ import annotations

import pytest

from edgesdk_converters.integer_program import IntegerProgram
from edgesdk_targets.fpga.balance import foldings, input_stream, wanted_lanes
from edgesdk_targets.fpga.segments import Form, segments, weighted

from .integer_nets import Net, dense_net


def balanced(program: IntegerProgram, multipliers: int, target_cycles: int = 0) -> tuple[dict[str, tuple[int, int]], int]:
    forms: dict[str, Form] = {one.result: "folded" for one in weighted(program)}
    found, pace = foldings(program, segments(program, forms), multipliers, target_cycles)
    return {name: (one.ins, one.outs) for name, one in found.items()}, pace


def test_a_budget_is_shared_by_work() -> None:
    program = dense_net((64, 32, 4), 4, "half_up")  # 2,048 and 128 products
    found, pace = balanced(program, 17)
    assert pace == 128
    assert [ins * outs for ins, outs in found.values()] == [16, 1]


@pytest.mark.parametrize("multipliers", [2, 5, 16, 64, 200])
def test_lanes_divide_the_layer_and_stay_within_the_budget(multipliers: int) -> None:
    net = Net()
    first = net.round(net.conv(net.input((3, 9, 9)), 8, (3, 3), (2, 2)))
    second = net.round(net.conv(first, 8, (3, 3), groups=8))
    program = net.program(net.dense(net.flatten(second), 10))
    found, pace = balanced(program, max(multipliers, 3))
    (a, b), (c, d), (e, f) = found.values()
    assert 3 % a == 8 % b == 0 and c == 1 and 8 % d == 0 and 8 % e == 0 and 10 % f == 0
    assert a * b + c * d + e * f <= max(multipliers, 3)
    work = (16 * 9 * 3 * 8, 4 * 9 * 8, 4 * 8 * 10)
    assert all(products / (lanes * more) <= pace for products, (lanes, more) in zip(work, found.values(), strict=True))


def test_more_multipliers_are_never_slower() -> None:
    program = dense_net((48, 30, 24, 5), 4, "half_up")
    paces = [balanced(program, multipliers)[1] for multipliers in (3, 4, 8, 16, 32, 64, 128)]
    assert paces == sorted(paces, reverse=True) and paces[0] > paces[-1]


def test_a_target_takes_the_fewest_lanes_that_reach_it() -> None:
    program = dense_net((64, 32, 4), 4, "half_up")
    found, pace = balanced(program, 64, target_cycles=512)
    assert pace == 512 and [ins * outs for ins, outs in found.values()] == [4, 1]


def test_an_input_comes_on_the_lanes_of_its_first_reader() -> None:
    program = dense_net((64, 32, 4), 4, "half_up")
    forms: dict[str, Form] = {one.result: "folded" for one in weighted(program)}
    parts = segments(program, forms)
    found, _ = foldings(program, parts, 17, 0)
    stream = input_stream(program.inputs[0], program)
    assert wanted_lanes(program.inputs[0], stream, parts, found, {}) == next(iter(found.values())).ins
    assert wanted_lanes(program.inputs[0], stream, parts, {}, {}) == 64
