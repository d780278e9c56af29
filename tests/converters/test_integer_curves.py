"""Straight lines and roots: what is computed on codes, against fractions and exact arithmetic, and the bounds that are told."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from edgesdk_converters.integer_curves import Curve, InverseRoot, LayerNorm
from edgesdk_converters.integer_norm import normalising
from edgesdk_converters.integer_program import Codes, IntegerProgram
from edgesdk_converters.integer_tables import CURVE_ERROR, drawn


@pytest.mark.parametrize(("cells", "parts", "bits"), [(2, 1, 4), (3, 4, 9), (5, 7, 15), (7, 6, 20)])
def test_no_root_is_farther_off_than_is_told(cells: int, parts: int, bits: int) -> None:
    """Every number that the table tells apart, at both ends of what it stands for."""
    table = InverseRoot.of(cells, parts, bits)
    count = 3 << cells
    assert len(table.base) == len(table.fall) == count and (table.fall >= 0).all()
    every = np.arange(count << parts)
    root = table.base[every >> parts] - (table.fall[every >> parts] * (every & ((1 << parts) - 1)) >> parts)
    worst = 0.0
    for end in (0, 1):
        exact = 1 / np.sqrt(1 + (every + end) / 2.0 ** (cells + parts))
        worst = max(worst, float(np.abs(root / 2.0**bits / exact - 1).max()))
    assert table.error / 4 < worst <= table.error


def plain(op: LayerNorm, row: list[int]) -> list[int]:
    """A row of LayerNorm.of in Python's integers, by the text of its definition."""
    count, total = len(row), sum(row)
    wide = (count * sum(code * code for code in row) - total * total) * 4**op.finer + op.added
    k = next(k for k in range(op.top + 1) if wide < 4 ** (k + 1))
    mantissa = wide * 4 ** (op.top - k)
    below = 2 * op.top - op.root.cell_bits
    cell = mantissa // 2**below - 2**op.root.cell_bits
    part = mantissa // 2 ** (below - op.root.part_bits) % 2**op.root.part_bits
    root = int(op.root.base[cell]) - int(op.root.fall[cell]) * part // 2**op.root.part_bits
    normal = [(count * code - total) * root // 2 ** (op.root.bits + k - op.finer - op.bits) for code in row]
    return [one * int(gain) * 2**op.up + int(bias) for one, gain, bias in zip(normal, op.gain, op.bias, strict=True)]


def norm(count: int, bits: int, exponent: int, epsilon: float = 1e-5, seed: int = 0) -> tuple[LayerNorm, Codes, Codes]:
    rng = np.random.default_rng(seed)
    source = Codes("x", (count,), exponent, -(1 << bits - 1), (1 << bits - 1) - 1)
    gain, bias = rng.integers(-100, 128, count), rng.integers(-500, 500, count)
    operation, made, inside = normalising("n", source, "y", (gain, -6), (bias, -9), epsilon, 3 - bits)
    assert inside <= 62
    return operation, source, made


def rows(source: Codes, seed: int = 1) -> Any:
    """Noise of all sizes, all alike, all but one alike, both ends."""
    rng = np.random.default_rng(seed)
    count = source.shape[0]
    spread = 2.0 ** rng.uniform(-1, math.log2(source.high + 1), (400, 1))
    noise = np.rint(rng.standard_normal((400, count)) * spread + rng.integers(-9, 10, (400, 1)))
    alike = np.repeat(rng.integers(source.low, source.high + 1, (20, 1)), count, axis=1)
    one = alike.copy()
    one[:, rng.integers(count)] = rng.integers(source.low, source.high + 1, 20)
    ends = rng.choice([source.low, source.high], (40, count))
    near = alike + (np.arange(count) == 0)
    return np.clip(np.concatenate([noise, alike, one, ends, near]), source.low, source.high).astype(np.int64)


CASES = [(2, 8, -4, 1e-5), (3, 4, 0, 1e-5), (8, 8, -12, 1e-5), (17, 6, 3, 0.0), (64, 8, -5, 1e-3), (48, 12, -9, 1e-12),
         (5, 16, -13, 1e-5), (1, 8, -4, 1e-5)]  # fmt: skip


@pytest.mark.parametrize(("count", "bits", "exponent", "epsilon"), CASES)
def test_layer_normalisation_is_what_its_definition_says_and_keeps_its_bound(
    count: int, bits: int, exponent: int, epsilon: float
) -> None:
    op, source, made = norm(count, bits, exponent, epsilon)
    codes = rows(source)
    found = op.of(codes)
    assert found.tolist() == [plain(op, row) for row in codes.tolist()]
    assert made.low <= found.min() and found.max() <= made.high
    values = codes * source.step
    deviation = np.sqrt(values.var(axis=-1, keepdims=True) + epsilon)
    normal = np.divide(values - values.mean(axis=-1, keepdims=True), deviation, out=np.zeros_like(values), where=deviation > 0)
    exact = normal * op.gain * 2.0**-6 + op.bias * made.step
    off = np.abs(found * made.step - exact).max() / 2.0 ** (3 - bits)
    assert off <= op.error < 0.15
    assert count == 1 or off > op.error / 20, "a bound that nothing comes near says nothing"


def test_equal_codes_give_the_bias_even_without_an_epsilon() -> None:
    op, _, _ = norm(9, 8, -4, 0.0)
    assert op.of(np.full((1, 9), 77)).tolist() == [op.bias.tolist()] and op.added == 1


def test_one_wrong_entry_of_the_root_is_seen() -> None:
    op, source, _ = norm(16, 8, -4)
    base = op.root.base.copy()
    used = rows(source)
    base[len(base) // 3] ^= 1 << op.root.bits - 3
    broken = replace(op, root=replace(op.root, base=base))
    assert (broken.of(used) != op.of(used)).any()


def test_rows_are_normalised_one_by_one_in_a_program() -> None:
    op, source, made = norm(6, 8, -4)
    shaped = replace(source, shape=(3, 6)), replace(made, shape=(3, 6))
    tensors = {codes.name: codes for codes in shaped}
    program = IntegerProgram("p", ("x",), ("y",), tensors, (op,), {"x": "half_even"}, {})
    codes = np.random.default_rng(2).integers(-128, 128, (5, 3, 6))
    np.testing.assert_array_equal(program.run({"x": codes})["y"].reshape(15, 6), op.of(codes.reshape(15, 6)))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def gelu(x: Any) -> Any:
    return x * np.array([0.5 * (1 + math.erf(one / math.sqrt(2))) for one in x.ravel()]).reshape(x.shape)


@pytest.mark.parametrize(("bits", "exponent", "result"), [(13, -9, -9), (14, -11, -8), (16, -12, -12), (16, -14, -13)])
@pytest.mark.parametrize(("function", "computed"), [("Sigmoid", sigmoid), ("Tanh", np.tanh), ("Gelu", gelu)])
def test_straight_lines_keep_their_bound_for_every_code(
    function: str, computed: Any, bits: int, exponent: int, result: int
) -> None:
    source = Codes("x", (4,), exponent, -(1 << bits - 1), (1 << bits - 1) - 1)
    op, made = drawn("f", source, "y", function, computed, result)
    every = np.arange(source.low, source.high + 1)
    found = op.of(every)
    off = np.abs(found * made.step - computed(every * source.step)).max() / 2.0**result
    assert off == pytest.approx(op.error, abs=1e-9) and off <= CURVE_ERROR
    assert (made.low, made.high) == (found.min(), found.max())
    assert len(op.base) < (1 << bits) / 4, "fewer entries than a table of half the codes"
    assert op.slope[-1] == 0 and (op.slope[:-1] == np.diff(op.base)).all()


def test_a_curve_is_a_ramp_and_the_value_at_its_size() -> None:
    op = Curve("f", "x", "y", "Gelu", np.array([0, -5, 2]), np.array([-5, 7, 0]), 2, 3, 10, False, 0.0)
    assert op.of(np.array([0, 1, 4, 6, 9, 90])).tolist() == [10, 13 - 5, 22 - 20, 28 - 20 + 14, 37 + 8, 280 + 8]
    assert op.of(np.array([-1, -6, -50])).tolist() == [10 - 5, 10 - 20 + 14, 10 + 8]
    odd = replace(op, odd=True, ramp=0)
    assert odd.of(np.array([-6, 6])).tolist() == [10 + 6, 10 - 6]


def test_lines_are_exact_at_their_ends() -> None:
    """Where the function itself is a multiple of the step there: x / 2 of an odd function."""
    source = Codes("x", (1,), 0, -4096, 4095)
    op, made = drawn("f", source, "y", "Softsign", lambda x: x / 2, -4)
    every = np.arange(-4096, 4096)
    assert op.error == 0 and [Fraction(int(code)) * Fraction(made.step) for code in op.of(every)] == [
        Fraction(int(c), 2) for c in every
    ]
