"""Inputs that are scaled by channel at once: bits that the scales need, ranges that single values do not stretch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgesdk_converters import integer_reader
from edgesdk_converters.calibration import Samples
from edgesdk_converters.fixed_inputs import scaled_inputs, share_lost, wider_inputs, worth_covering
from edgesdk_converters.fixed_widths import covering
from edgesdk_converters.fold import Fold
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.reference import Reference

from .test_affine import norm, of, op

PIXELS, SAMPLES, DARK = 24, 200, 4


def pixels(build: Any) -> tuple[Model, Any]:
    """A norm over pixels from 0 to 255, of which the first few are dark, and in one sample of 50 lit; and samples."""
    rng = np.random.default_rng(4)
    seen = rng.integers(0, 256, (SAMPLES, 1, PIXELS)).astype(np.float32)
    seen[:, 0, :DARK] = rng.random((SAMPLES, DARK)) < 0.1  # the statistics are those of a training in which none was lit
    statistics: dict[str, Any] = {
        "gamma": np.ones(PIXELS), "beta": np.zeros(PIXELS), "mean": seen.mean(axis=(0, 1)),
        "var": seen.var(axis=(0, 1)), "w": rng.standard_normal((PIXELS, 5)) / 5,
    }  # fmt: skip
    model = of(build, [norm("x", "n"), op("Gemm", "n w b", "y")], (1, PIXELS), (1, 5), opset=13, **statistics)
    lit = np.arange(0, SAMPLES, 50)
    seen[lit, 0, np.arange(len(lit)) % DARK] = 255
    return model, seen


def off(made: Model, model: Model, x: Any) -> float:
    """What half of the samples differ by less than, as a share of the size of the results."""
    program = integer_reader.program(made)
    found = program.decode(program.run(program.encode({"x": x[:, 0]})))["y"]
    wanted = np.concatenate([Reference(model).run({"x": one})["y"] for one in x])
    return float(np.median(np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.03), (6, 0.12)])
def test_single_values_do_not_cost_all_others_their_steps(build: Any, bits: int, most: float) -> None:
    model, x = pixels(build)
    given = Given(model, Samples({"x": x}, "chosen"))
    folded = Fold()(model, given)
    made = Quantize(flavour="fixed", bits=bits)(folded, given)
    assert off(made, model, x) < most, made.history[-1].note
    assert "norm covers -" in made.history[-1].note and "which few samples need" in made.history[-1].note
    whole = Quantize(flavour="fixed", bits=bits, calibration="minmax")(folded, given)
    assert off(whole, model, x) > 5 * most, "what was asked for by name covers all"
    assert "covers" not in whole.history[-1].note


def test_whole_numbers_need_no_finer_step_than_one(build: Any) -> None:
    model, x = pixels(build)
    for values, least, greatest in ((x, 8, 8), (x + np.float32(0.001), 11, 16)):
        given = Given(model, Samples({"x": values}, "chosen"))
        codes = integer_reader.program(Quantize(flavour="fixed")(Fold()(model, given), given)).tensors["x"]
        assert least <= codes.bits <= greatest and codes.exponent <= 0


def test_what_is_lost_all_the_same_is_told(build: Any) -> None:
    """Sizes that differ more than 16 bits can hold."""
    sizes = np.array([3e5, 2e5, 0.5, 0.4, 1.0])
    statistics: dict[str, Any] = {"gamma": np.ones(5), "beta": np.zeros(5), "mean": np.zeros(5), "var": sizes**2}
    model = of(build, [norm("x", "n"), op("Gemm", "n v c", "y")], (1, 5), (1, 4), opset=13, **statistics)
    x = (sizes * np.random.default_rng(1).standard_normal((100, 1, 5))).astype(np.float32)
    given = Given(model, Samples({"x": x}, "chosen"))
    note = Quantize(flavour="fixed")(Fold()(model, given), given).history[-1].note
    assert "WARNING" in note and "norm makes of the input x" in note and "--set quantize.widths=norm=12" in note
    small = Given(model, Samples({"x": x / sizes.astype(np.float32)}, "of one size"))
    assert "WARNING" not in Quantize(flavour="fixed", widths=("norm=16",))(Fold()(model, small), small).history[-1].note


def test_widths_and_ranges_by_hand(build: Any) -> None:
    """A scale of 8 behind an input in quarters; one sample of four reaches far."""
    nodes = [op("Mul", "x sizes", "s", "scale"), op("Relu", "s", "r"), op("Gemm", "r v c", "y")]
    model = of(build, nodes, (1, 5), (1, 4), sizes=np.array([1.0, 8, 1, 1, 1]))
    x = np.full((4, 1, 5), 0.25, np.float32)
    x[3, 0, 0] = 1000
    samples, ranges = Samples({"x": x}, "chosen"), {"x": (0.0, 1000.0), "s": (0.0, 1000.0), "r": (0.0, 1000.0)}
    (found,) = scaled_inputs(model, ["scale", "Relu_r", "Gemm_y"], ranges, {})
    assert (found.name, found.node, found.result, found.steepest, found.is_told) == ("x", "scale", "r", 8, False)
    assert scaled_inputs(model, ["scale"], ranges, {"scale": 5})[0].is_told and not scaled_inputs(model, [], ranges, {})
    assert worth_covering(model, [found], ranges, samples, {"r": 8}) == {"r": (0.0, 510.0)}, "in steps of 4, a 2 would be lost"
    assert wider_inputs([found], ranges | {"r": (0.0, 255 / 16)}, samples, 8) == {"x": 12}, "1000 in quarters, not in 128ths"
    others, far = 0.25 / 4.25, (490**2 + 3 / 16) / (1000**2 + 4 + 3 / 16)
    rest = share_lost(model, found, samples, covering(0, 1000, 12), covering(0, 510, 8))
    assert rest == pytest.approx((3 * others + far) / 4)
