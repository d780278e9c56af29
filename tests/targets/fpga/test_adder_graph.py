"""Adder graphs: exact for any matrix, within the depth that was allowed, and no adder where none is needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgesdk_converters.integer_program import Integers
from edgesdk_targets.fpga import adder_graph
from edgesdk_targets.fpga.adder_graph import AdderGraph, evaluate, minimal_depth, solve
from edgesdk_targets.fpga.subexpressions import signed_digits


def random_matrix(outs: int, ins: int, bits: int, seed: int = 0) -> Integers:
    return np.random.default_rng(seed).integers(-(1 << (bits - 1)), 1 << (bits - 1), (outs, ins))


def solved(rows: list[list[int]], low: int = -8, high: int = 7, bias: list[int] | None = None, slack: int = -1) -> AdderGraph:
    matrix = np.array(rows, np.int64).reshape(len(rows), -1)
    ins = matrix.shape[1]
    return solve(matrix, np.full(ins, low), np.full(ins, high), slack, None if bias is None else np.array(bias))


def assert_exact(graph: AdderGraph, matrix: Integers, bias: Integers, codes: Integers) -> None:
    assert np.array_equal(evaluate(graph, codes), matrix @ codes + bias[:, None])
    lows, highs = np.array(graph.lows, np.int64), np.array(graph.highs, np.int64)
    for row, offset, output in zip(matrix, bias, graph.outputs, strict=True):
        assert output.low == np.where(row > 0, row * lows, row * highs).sum() + offset
        assert output.high == np.where(row > 0, row * highs, row * lows).sum() + offset


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_any_matrix_is_computed_exactly_within_exact_ranges_and_the_allowed_depth(data: st.DataObject) -> None:
    outs, ins, bits = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9)), data.draw(st.integers(2, 16))
    slack = data.draw(st.integers(-1, 2))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    matrix = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (outs, ins))
    matrix[random.random((outs, ins)) < data.draw(st.sampled_from([0, 0.5, 0.9]))] = 0
    if data.draw(st.booleans()):
        matrix = -np.abs(matrix)
    bias = random.integers(-(1 << bits), 1 << bits, outs) * data.draw(st.integers(0, 1))
    ends = np.sort(random.integers(-128, 256, (2, ins)), axis=0) * data.draw(st.integers(0, 1)) + np.array([[0], [15]])
    graph = solve(matrix, ends[0], ends[1], slack, bias)
    codes = np.concatenate([ends, random.integers(ends[0], ends[1] + 1, (20, ins))]).T
    assert_exact(graph, matrix, bias, codes)
    if slack >= 0:
        assert graph.depth <= minimal_depth(matrix, bias) + slack
    known = [*codes, *(np.zeros(22, np.int64) for _ in graph.adders)]
    for place, adder in enumerate(graph.adders):
        left = adder.constant if adder.left < 0 else known[adder.left] << adder.left_shift
        right = adder.constant if adder.right < 0 else known[adder.right] << adder.right_shift
        known[ins + place] = value = np.asarray(left - right if adder.subtract else left + right)
        assert adder.low <= value.min() and value.max() <= adder.high


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (2, 1), (1, 40)])
def test_degenerate_shapes(shape: tuple[int, int]) -> None:
    matrix, bias = random_matrix(*shape, bits=8), np.arange(shape[0])
    graph = solve(matrix, np.full(shape[1], -3), np.full(shape[1], 12), 0, bias)
    assert_exact(graph, matrix, bias, np.random.default_rng(1).integers(-3, 13, (shape[1], 30)))


def test_zeros_and_powers_of_two_take_no_adder() -> None:
    graph = solved([[0, 0], [4, 0], [0, 1], [0, 64]])
    assert graph.adders == () and graph.depth == 0 and graph.adder_bits == 0
    assert [(output.source, output.shift, output.negated) for output in graph.outputs] == [
        (-1, 0, False), (0, 2, False), (1, 0, False), (1, 6, False),
    ]  # fmt: skip


def test_rows_equal_up_to_shift_and_sign_are_summed_once() -> None:
    graph = solved([[1, 3], [4, 12], [-1, -3], [1, 3], [-8, -24]])
    assert len(graph.adders) == 2
    assert {output.source for output in graph.outputs} == {graph.outputs[0].source}
    assert [(output.shift, output.negated) for output in graph.outputs] == [
        (0, False),
        (2, False),
        (0, True),
        (0, False),
        (3, True),
    ]


def test_what_two_rows_share_is_added_once() -> None:
    assert len(solved([[1, 1, 0, 4], [1, 1, 16, 0]]).adders) == 3  # and not four
    assert len(solved([[5, 0], [5, 1]]).adders) == 2
    assert len(solved([[1 + 4 + 64 + 256]]).adders) == 2  # (x + 4x) + 64 (x + 4x)


def test_a_difference_needs_no_negation_and_a_negative_sum_one() -> None:
    graph = solved([[-1, 4, 0], [0, -4, -1]])
    assert [output.negated for output in graph.outputs] == [False, True]
    assert len(graph.adders) == 2 and graph.depth == 2
    assert not any(output.negated for output in solved([[-1, -4]], bias=[3]).outputs)


def test_a_used_difference_is_turned_round_rather_than_negated() -> None:
    graph = solved([[1, -1, 0], [-1, 1, 0], [3, -3, 8]])
    assert [output.negated for output in graph.outputs] == [False, True, False]
    turned = solved([[1, -1, 8], [-1, 1, 0]], slack=0)
    assert not any(output.negated for output in turned.outputs) and turned.depth <= 2


def test_low_bits_of_one_operand_alone_cost_nothing() -> None:
    assert solved([[1, 16]], 0, 15).adder_bits == 0  # side by side
    assert solved([[1, 8]], 0, 15).adder_bits == 5  # of 8 bits, 3 are the first operand's own
    assert solved([[1, -8]], 0, 15).adder_bits == 5
    assert solved([[-1, 8]], 0, 15).adder_bits == 8  # a borrow runs through all
    assert solved([[16]], 0, 15, bias=[9]).adder_bits == 0


def test_sharing_takes_less_than_two_thirds_of_the_adders_of_digits() -> None:
    matrix = random_matrix(32, 32, 8)
    graph = solve(matrix, np.full(32, -128), np.full(32, 127), 1)
    digits = int(np.abs(signed_digits(matrix)).sum()) - 32
    assert len(graph.adders) < 0.66 * digits
    assert graph.depth <= minimal_depth(matrix) + 1


def test_a_matrix_in_blocks_is_exact_and_keeps_its_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adder_graph, "BLOCK_DIGITS", 100)
    monkeypatch.setattr(adder_graph, "BLOCK_ROWS", 5)
    matrix, bias = random_matrix(12, 20, 6), np.arange(12)
    graph = solve(matrix, np.full(20, -8), np.full(20, 7), 0, bias)
    assert_exact(graph, matrix, bias, np.random.default_rng(2).integers(-8, 8, (20, 50)))
    assert graph.depth <= minimal_depth(matrix, bias)


def test_signed_digits_are_canonical() -> None:
    values = np.arange(-600, 600)
    digits = signed_digits(values).astype(np.int64)
    assert np.array_equal((digits * (1 << np.arange(len(digits)))[:, None]).sum(axis=0), values)
    assert not (digits[1:] * digits[:-1]).any()


def test_the_same_matrix_gives_the_same_graph() -> None:
    matrix = random_matrix(16, 16, 6)
    lows, highs = np.full(16, 0), np.full(16, 63)
    assert solve(matrix, lows, highs, 1) == solve(matrix.copy(), lows, highs, 1)


def test_ranges_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a matrix \(2, 3\) with \(2,\) lows"):
        solve(np.ones((2, 3), np.int64), np.zeros(2, np.int64), np.ones(3, np.int64))
