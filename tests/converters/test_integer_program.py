"""Integer programs: every operation computes what its definition says, on Python's own integers."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from edgesdk_converters import integer_program as ip
from edgesdk_converters.integer_program import Codes, IntegerProgram, rounded

ROUNDINGS = ("half_even", "half_up", "truncate")


def program(operations: list[Any], tensors: list[Codes], inputs: tuple[str, ...], outputs: tuple[str, ...], **more: Any) -> Any:
    roundings = dict.fromkeys(inputs, "half_even") | more
    return IntegerProgram("p", inputs, outputs, {t.name: t for t in tensors}, tuple(operations), roundings, {})


def ran(operation: Any, result: Codes, *sources: tuple[Codes, Any]) -> Any:
    """What one operation makes of codes that carry their batch axis."""
    names = tuple(codes.name for codes, _ in sources)
    made = program([operation], [result, *(codes for codes, _ in sources)], names, (result.name,))
    return made.run({codes.name: np.asarray(values) for codes, values in sources})[result.name]


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 0, 1), (0, 1, 1), (0, 255, 8), (0, 256, 9), (-1, 0, 1), (-128, 127, 8),
                         (-129, 0, 9), (-1, 127, 8), (-4, -2, 3), (5, 6, 3)])  # fmt: skip
def test_bits_are_those_of_the_narrowest_integer(low: int, high: int, bits: int) -> None:
    assert Codes("x", (1,), 0, low, high).bits == bits


def test_rounding_is_that_of_fractions() -> None:
    codes = np.arange(-200, 201)
    wanted: Any = {"half_even": round, "half_up": lambda v: (v + Fraction(1, 2)).__floor__(), "truncate": lambda v: v.__floor__()}
    how: Any
    for how, shift, divisor in itertools.product(ROUNDINGS, range(-2, 6), (1, 3, 5, 6, 49)):
        exact = [wanted[how](Fraction(int(code), divisor) / Fraction(2) ** shift) for code in codes]
        np.testing.assert_array_equal(rounded(codes, shift, divisor, how), exact, err_msg=f"{how} {shift} {divisor}")


def test_inputs_are_rounded_as_float32_rounds_them() -> None:
    x = Codes("x", (6,), -1, -4, 3)
    below = np.nextafter(np.float32(0.25), np.float32(0))
    values = np.array([[0.25, 0.75, -0.25, below, 99.0, -99.0]], np.float32)
    wanted = {"half_even": [0, 2, 0, 0, 3, -4], "half_up": [1, 2, 0, 1, 3, -4], "truncate": [0, 1, -1, 0, 3, -4]}
    for how in ROUNDINGS:
        made = program([], [x], ("x",), ("x",), x=how)
        np.testing.assert_array_equal(made.encode({"x": values})["x"][0], wanted[how], err_msg=how)
    half = np.floor(np.float32(2) * below + np.float32(0.5))
    assert half == 1, "just below a half, float32 adds up to one"
    np.testing.assert_array_equal(made.decode({"x": np.array([[3, -4]])})["x"], [[1.5, -2.0]])


def convolved(x: Any, op: ip.Conv) -> Any:
    """Plain loops: x (batch, channels, h, w)."""
    top, left, bottom, right = op.pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    outs, group_ins, high, wide = op.weight.shape
    rows, columns = (x.shape[2] - high) // op.strides[0] + 1, (x.shape[3] - wide) // op.strides[1] + 1
    result = np.zeros((len(x), outs, rows, columns), np.int64)
    for o, i, j in np.ndindex(outs, rows, columns):
        first = o // (outs // op.groups) * group_ins
        patch = x[:, first : first + group_ins, i * op.strides[0] :, j * op.strides[1] :][:, :, :high, :wide]
        result[:, o, i, j] = (patch * op.weight[o]).sum(axis=(1, 2, 3)) + op.bias[o]
    return result


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("strides", "pads"), [((1, 1), (0, 0, 0, 0)), ((2, 1), (1, 0, 2, 1)), ((3, 2), (2, 2, 0, 1))])
def test_convolutions_are_sums_of_products(groups: int, strides: tuple[int, ...], pads: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.integers(-9, 9, (8, 4 // groups, 3, 2)), rng.integers(-99, 99, 8)
    x = rng.integers(-8, 8, (3, 4, 7, 6))
    op = ip.Conv("n", "x", "y", weight, bias, strides, pads, groups)
    wanted = convolved(x, op)
    got = ran(op, Codes("y", wanted.shape[1:], 0, -9999, 9999), (Codes("x", (4, 7, 6), 0, -8, 7), x))
    np.testing.assert_array_equal(got, wanted)


def test_a_convolution_may_have_one_dimension_of_space() -> None:
    x = np.array([[[1, 2, 3, 4]]])
    op = ip.Conv("n", "x", "y", np.array([[[1, -1]]]), np.array([10]), (2,), (1, 1))
    got = ran(op, Codes("y", (1, 3), 0, 0, 99), (Codes("x", (1, 4), 0, 0, 4), x))
    np.testing.assert_array_equal(got, [[[9, 9, 14]]])


def test_sums_are_exact_where_doubles_are_not() -> None:
    big = 2**53 + 1
    op = ip.Dense("n", "x", "y", np.array([[1, 1]]), np.array([0]))
    got = ran(op, Codes("y", (1,), 0, 0, 2**60), (Codes("x", (2,), 0, 0, big), np.array([[big, 0]])))
    assert got.tolist() == [[big]]
    assert int(float(big)) != big


def test_pools_pass_over_what_lies_outside() -> None:
    x = np.array([[[[-5, -7], [-3, -9]]]])
    source = Codes("x", (1, 2, 2), 0, -9, 0)
    most = ip.Pool("n", "x", "y", "max", (2, 2), (1, 1), (1, 1, 0, 0))
    np.testing.assert_array_equal(ran(most, Codes("y", (1, 2, 2), 0, -9, 0), (source, x)), [[[[-5, -5], [-3, -3]]]])
    total = ip.Pool("n", "x", "y", "sum", (2, 2), (1, 1), (0, 0, 0, 0))
    np.testing.assert_array_equal(ran(total, Codes("y", (1, 1, 1), 0, -36, 0), (source, x)), [[[[-24]]]])


def test_sums_scales_and_products_broadcast_behind_the_batch() -> None:
    a, b = np.arange(12).reshape(2, 2, 3), np.array([[1, 2, 3], [4, 5, 6]])
    left, right, y = Codes("a", (2, 3), 0, 0, 11), Codes("b", (3,), 0, 0, 6), Codes("y", (2, 3), 0, -999, 999)
    total = ran(ip.Sum("n", ("a", "b"), (2, -1), "y", np.array([[10], [20]])), y, (left, a), (right, b))
    np.testing.assert_array_equal(total, 2 * a - b[:, None] + np.array([[10], [20]]))
    np.testing.assert_array_equal(ran(ip.Scale("n", "b", "y", np.array([[1], [-3]])), y, (right, b)), b[:, None] * [[1], [-3]])
    np.testing.assert_array_equal(ran(ip.Product("n", "a", "b", "y"), y, (left, a), (right, b)), a * b[:, None])
    square = ip.Product("n", "a", "c", "y", matmul=True)
    c, turned = a.transpose(0, 2, 1), Codes("c", (3, 2), 0, 0, 11)
    np.testing.assert_array_equal(ran(square, Codes("y", (2, 2), 0, 0, 999), (left, a), (turned, c)), a @ c)


def test_what_works_on_single_codes() -> None:
    codes, x = np.array([[-3, -1, 0, 2, 5]]), Codes("x", (5,), -1, -3, 5)
    y = Codes("y", (5,), 0, -9, 9)
    assert ran(ip.Clip("n", "x", "y", 0, 3), y, (x, codes)).tolist() == [[0, 0, 0, 2, 3]]
    assert ran(ip.Clip("n", "x", "y", None, 1), y, (x, codes)).tolist() == [[-3, -1, 0, 1, 1]]
    assert ran(ip.Leaky("n", "x", "y", 3, 2), y, (x, codes)).tolist() == [[-9, -3, 0, 8, 20]]
    assert ran(ip.Table("n", "x", "y", "square", np.arange(-3, 6) ** 2), y, (x, codes)).tolist() == [[9, 1, 0, 4, 25]]
    narrow = Codes("y", (5,), 0, -1, 2)
    assert ran(ip.Round("n", "x", "y", "half_even"), narrow, (x, codes)).tolist() == [[-1, 0, 0, 1, 2]]
    assert ran(ip.Round("n", "x", "y", "half_up"), narrow, (x, codes)).tolist() == [[-1, 0, 0, 1, 2]]
    assert ran(ip.Round("n", "x", "y", "truncate"), narrow, (x, codes)).tolist() == [[-1, -1, 0, 1, 2]]


def test_moves_count_through_all_sources_and_fill_with_zeros() -> None:
    a, b = Codes("a", (2,), 0, 0, 9), Codes("b", (2, 1), -1, 0, 9)
    op = ip.Move("n", ("a", "b"), (2, 1), "y", np.array([[3, -1], [0, 2]]))
    got = ran(op, Codes("y", (2, 2), -1, 0, 18), (a, np.array([[1, 2], [3, 4]])), (b, np.array([[[5], [6]], [[7], [8]]])))
    assert got.tolist() == [[[6, 0], [2, 5]], [[8, 0], [6, 7]]]


def test_of_equal_codes_the_first_is_the_greatest() -> None:
    x, codes = Codes("x", (2, 3), 0, 0, 9), np.array([[[1, 7, 7], [9, 9, 0]]])
    assert ran(ip.ArgMax("n", "x", "y", -1, False), Codes("y", (2,), 0, 0, 2), (x, codes)).tolist() == [[1, 0]]
    assert ran(ip.ArgMax("n", "x", "y", 0, True), Codes("y", (1, 3), 0, 0, 1), (x, codes)).tolist() == [[[1, 1, 0]]]


def test_softmax_divides_its_powers_and_saturates() -> None:
    values = np.array([64, 32, 16])
    op = ip.Softmax("n", "x", "y", values, 4)
    x, y = Codes("x", (3,), 0, 0, 9), Codes("y", (3,), -4, 0, 15)
    assert ran(op, y, (x, np.array([[4, 3, 2], [9, 0, 0], [1, 1, 1]]))).tolist() == [[9, 5, 2], [15, 0, 0], [5, 5, 5]]


def test_many_inputs_at_once_are_as_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    weight = rng.integers(-8, 8, (4, 2, 3, 3))
    tensors = [Codes("x", (2, 6, 6), 0, -8, 7), Codes("s", (4, 6, 6), 0, -2000, 2000), Codes("y", (4, 6, 6), 3, -8, 7)]
    operations = [ip.Conv("n", "x", "s", weight, np.zeros(4, np.int64), (1, 1), (1,) * 4), ip.Round("r", "s", "y", "half_even")]
    made = program(operations, tensors, ("x",), ("y",))
    x = rng.integers(-8, 8, (7, 2, 6, 6))
    whole = made.run({"x": x}, keep=True)
    assert set(whole) == {"x", "s", "y"} and whole["s"].shape == (7, 4, 6, 6)
    monkeypatch.setattr(ip, "AT_ONCE", 2 * 2 * 6 * 6 * 9)
    assert made._few() == 2
    again = made.run({"x": x}, keep=True)
    for name, codes in whole.items():
        np.testing.assert_array_equal(again[name], codes)
    assert set(made.run({"x": x})) == {"y"}
