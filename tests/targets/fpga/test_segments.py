"""Segments: which operations become one stage, and which tensors are the same beats under two names."""

from __future__ import annotations

import numpy as np

from edgesdk_converters.integer_program import Conv, Dense
from edgesdk_targets.fpga.segments import Alias, Form, Segment, segments, weight_bits, weighted

from .integer_nets import Net, dense_net


def kinds(part: Segment | Alias) -> list[str]:
    return ["Alias"] if isinstance(part, Alias) else [type(operation).__name__ for operation in part.operations]


def test_dense_layers_that_are_unrolled_are_one_stage_and_folded_ones_are_not() -> None:
    program = dense_net((8, 6, 4), 4, "half_up")
    unrolled: dict[str, Form] = {one.result: "unrolled" for one in weighted(program)}
    assert [kinds(part) for part in segments(program, unrolled)] == [["Dense", "Clip", "Round", "Dense", "Round"]]
    folded: dict[str, Form] = {one.result: "folded" for one in weighted(program)}
    assert [kinds(part) for part in segments(program, folded)] == [["Dense", "Clip", "Round"], ["Dense", "Round"]]


def test_what_two_operations_read_ends_a_stage() -> None:
    net = Net()
    first = net.round(net.conv(net.input((2, 4, 4)), 2, (1, 1)))
    second = net.round(net.conv(first, 2, (3, 3), pads=(1, 1, 1, 1)))
    program = net.program(net.relu(net.sum([first, second], [1, 1])))
    found = segments(program, {one.result: "unrolled" for one in weighted(program)})
    assert [kinds(part) for part in found] == [["Conv", "Round"], ["Conv", "Round"], ["Sum", "Clip"]]


def test_an_output_ends_a_stage() -> None:
    net = Net()
    sums = net.dense(net.input((4,)), 3)
    program = net.program(sums, net.round(sums))
    found = segments(program, {sums: "unrolled"})
    assert [kinds(part) for part in found] == [["Dense"], ["Round"]]


def test_a_flatten_is_another_name_and_a_cut_is_a_stage() -> None:
    net = Net()
    image = net.input((2, 3, 3))
    flat = net.flatten(image)
    program = net.program(net.round(flat))
    found = segments(program, {})
    assert [kinds(part) for part in found] == [["Alias"], ["Round"]]
    assert isinstance(found[0], Alias) and found[0].source == image


def test_weights_have_the_width_of_the_widest() -> None:
    net = Net(bits=5)
    net.conv(net.input((2, 4)), 3, (3,))
    (conv,) = weighted(net.program())
    assert isinstance(conv, Conv) and weight_bits(conv) == 5
    for weight, bits in (([[0]], 1), ([[1]], 2), ([[-1]], 1), ([[-8, 7]], 4), ([[8]], 5)):
        assert weight_bits(Dense("", "x", "y", np.array(weight), np.array([0]))) == bits
