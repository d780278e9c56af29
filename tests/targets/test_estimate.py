"""Estimates: the roofline as by hand, rows that add up, intervals that hold the value, strange layers widened and marked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from edgesdk_converters.cost import Layer
from edgesdk_converters.errors import DeviceError
from edgesdk_targets.device import DeviceProfile, profile
from edgesdk_targets.estimate import (
    RUNTIME_BYTES,
    SEEN_KINDS,
    WHENCE,
    Roofline,
    latency,
    modelled,
    peak_memory,
    published_profile,
)
from edgesdk_targets.figure import Figure
from edgesdk_targets.latency_fit import network
from edgesdk_targets.latency_model import FITTED, Fitted, Setting, constants

BOARD = DeviceProfile("board", "t", "a board")
# 10 GFLOP/s, 2 GB/s, 30 us a layer
DEVICES = Path(__file__).parents[2] / "targets/edgesdk_targets/devices"
ROOF = Roofline(10.0, 2.0, 30.0, 2.0, 0.5, 4.0, "by hand", 0.8)


def layer(name: str, kind: str = "conv", macs: int = 0, moved: int = 0, ops: int = 0, weights: int = 0, **more: object) -> Layer:
    return Layer(
        name, "Op", kind, macs=macs, elem_ops=ops, weight_bytes=weights, in_bytes=moved // 2, out_bytes=moved - moved // 2, **more
    )  # type: ignore[arg-type]


def value(figure: Figure) -> float:
    assert figure.value is not None
    return float(figure.value)


def test_a_layer_bound_by_arithmetic_takes_its_operations_over_the_peak() -> None:
    # 5e6 MACs = 1e7 operations / 1e10 per s = 1 ms; 1000 bytes are nothing; 0.03 ms to start: 1.03 ms x 2
    total, row = latency([layer("a", macs=5_000_000, moved=1000)], ROOF, BOARD)
    assert value(total) == pytest.approx(2.06)
    assert value(row) == pytest.approx(2.06)
    assert total.interval is not None
    assert (total.interval.low, total.interval.high) == (pytest.approx(0.515), pytest.approx(4.12))
    assert total.interval.level == 0.8
    assert (total.provenance, total.where, total.unit, total.layer, row.layer) == ("estimated", "board", "ms", None, "a")
    assert "roofline x 2; by hand" in total.method


def test_a_layer_bound_by_memory_takes_its_bytes_over_the_bandwidth() -> None:
    # 3e6 activations + 1e6 weights = 4e6 bytes / 2e9 per s = 2 ms; 1e6 MACs = 0.2 ms
    total, _ = latency([layer("a", macs=1_000_000, moved=3_000_000, weights=1_000_000)], ROOF, BOARD)
    assert value(total) == pytest.approx((2.0 + 0.03) * 2)


def test_operations_without_macs_count_once_each() -> None:
    total, _ = latency([layer("a", "act", ops=10_000_000, moved=8)], ROOF, BOARD)
    assert value(total) == pytest.approx((1.0 + 0.03) * 2)


def test_rows_of_layers_add_up_to_the_total_and_free_layers_have_none() -> None:
    layers = [layer("a", macs=5_000_000, moved=9), layer("free", "reshape"), layer("b", "pool", moved=5_000_000, ops=3)]
    total, *rows = latency(layers, ROOF, BOARD)
    assert [row.layer for row in rows] == ["a", "b"]
    assert sum(map(value, rows)) == pytest.approx(value(total))
    for end in ("low", "high"):
        assert sum(getattr(row.interval, end) for row in rows) == pytest.approx(getattr(total.interval, end))


def test_a_kind_that_no_published_network_had_widens_threefold_and_is_marked() -> None:
    known = [layer("a", macs=5_000_000, moved=9)]
    strange = [*known, layer("m", "mha", macs=5_000_000, moved=9)]
    plain, marked = latency([*known, *known], ROOF, BOARD)[0], latency(strange, ROOF, BOARD)[0]
    assert not plain.extrapolated
    assert marked.extrapolated
    assert marked.value == plain.value
    assert plain.interval is not None
    assert marked.interval is not None
    assert marked.interval.low == pytest.approx(plain.interval.low / 3)
    assert marked.interval.high == pytest.approx(plain.interval.high * 3)
    assert "kinds outside the published networks: mha" in marked.method
    rows = {row.layer: row.extrapolated for row in latency(strange, ROOF, BOARD)[1:]}
    assert rows == {"a": False, "m": True}


@pytest.mark.parametrize("kind", sorted(SEEN_KINDS))
def test_seen_kinds_are_not_marked(kind: str) -> None:
    assert not latency([layer("a", kind, macs=5, moved=5)], ROOF, BOARD)[0].extrapolated


def test_nothing_that_takes_time_gives_no_latency() -> None:
    for layers in ([], [layer("r", "reshape")]):
        (row,) = latency(layers, ROOF, BOARD)
        assert (row.provenance, row.value, row.method) == ("unavailable", None, "no layer that takes time")


def test_every_interval_holds_its_value_over_many_sizes() -> None:
    for exponent in range(30):
        layers = [
            layer("a", "mha" if exponent % 3 == 0 else "conv", macs=2**exponent, moved=2 ** (30 - exponent), weights=2**exponent)
        ]
        for row in (*latency(layers, ROOF, BOARD), peak_memory(layers, BOARD)):
            assert row.interval is not None
            assert row.interval.low <= value(row) <= row.interval.high


def test_memory_is_runtime_weights_and_live_activations_as_by_hand() -> None:
    layers = [
        layer("a", moved=0, weights=10_000_000, inputs=("x",), outputs=("y",), in_shapes=((1,),), out_shapes=((1,),)),
        layer("b", weights=1_000_000, inputs=("y",), outputs=("z",), in_shapes=((1,),), out_shapes=((1,),)),
    ]
    figure = peak_memory(layers, BOARD)
    assert figure.value == RUNTIME_BYTES + 3 * 11_000_000
    assert figure.interval is not None
    assert figure.interval.low == pytest.approx(0.75 * RUNTIME_BYTES + 2 * 11_000_000)
    assert figure.interval.high == pytest.approx(1.3 * RUNTIME_BYTES + 3.6 * 11_000_000)
    assert not figure.extrapolated
    marked = peak_memory(layers, BOARD, unlike="a GPU")
    assert marked.extrapolated
    assert marked.method.endswith("; a GPU")


# weight bytes, live activation bytes, highest resident size with and without arena: ONNX Runtime 1.32, 1 thread, x86-64
MEASURED = {
    "squeezenet": (4.9e6, 6.3e6, 100.7e6, 109.0e6), "shufflenet": (5.7e6, 3.1e6, 95.9e6, 103.2e6),
    "efficientnet-lite0": (18.5e6, 9.6e6, 150.4e6, 157.5e6), "inception_v1": (28.0e6, 6.4e6, 173.9e6, 170.8e6),
    "densenet121": (32.6e6, 8.4e6, 222.9e6, 249.2e6), "inception_v2": (44.9e6, 6.4e6, 230.9e6, 242.1e6),
    "resnet50": (102.4e6, 9.6e6, 440.3e6, 452.1e6), "bvlc_alexnet": (243.9e6, 2.2e6, 790.0e6, 790.1e6),
    "zfnet512": (349.0e6, 9.1e6, 1112.4e6, 1121.6e6), "vgg19": (574.7e6, 25.7e6, 1782.5e6, 1782.5e6),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MEASURED))
def test_memory_agrees_with_what_was_measured(name: str) -> None:
    weights, live, *peaks = MEASURED[name]
    shapes = {"in_shapes": (), "out_shapes": ((1,),), "outputs": ("y",)}
    record = Layer(name, "Op", "conv", weight_bytes=int(weights), out_bytes=int(live), **shapes)  # type: ignore[arg-type]
    figure = peak_memory([record], BOARD)
    assert figure.interval is not None
    for peak in peaks:
        assert 0.88 <= peak / value(figure) <= 1.22
        assert figure.interval.low <= peak <= figure.interval.high


# fp16 networks, as the half pass makes them, measured likewise
MEASURED_HALF = {
    "resnet50": (51.06e6, 4.82e6, 382.0e6), "squeezenet": (2.47e6, 3.15e6, 99.6e6), "inception_v1": (14.0e6, 3.21e6, 167.1e6),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MEASURED_HALF))
def test_fp16_takes_the_memory_of_fp32_on_a_cpu_and_half_of_it_where_it_is_native(name: str) -> None:
    weights, live, peak = MEASURED_HALF[name]
    shapes = {"in_shapes": (), "out_shapes": ((1,),), "outputs": ("y",)}
    record = Layer(name, "Op", "conv", weight_bytes=int(weights), out_bytes=int(live), dtype="float16", **shapes)  # type: ignore[arg-type]
    figure = peak_memory([record], BOARD)
    assert figure.interval is not None
    assert 0.87 <= peak / value(figure) <= 1.0
    assert figure.interval.low <= peak <= figure.interval.high
    native = peak_memory([record], BOARD, half_native=True)
    assert value(native) - RUNTIME_BYTES == pytest.approx((value(figure) - RUNTIME_BYTES) / 2, abs=2)


BOARDS = {"raspberry-pi": "raspberry-pi-zero-2-w", "jetson": "jetson-nano"}
"""The slowest board of a family whose latency the fitted model estimates."""


@pytest.mark.parametrize("device", [p.stem for p in sorted(DEVICES.glob("*.toml")) if profile(p.stem).target in BOARDS])
def test_a_faster_board_of_a_family_is_estimated_faster(device: str) -> None:
    from edgesdk_targets.target import make

    target, slower = make(None, device), BOARDS[profile(device).target]
    rows = target.estimate([layer("a", macs=10**9, moved=10**6)], "fp32")
    if device != slower:
        reference = make(None, slower).estimate([layer("a", macs=10**9, moved=10**6)], "fp32")
        assert value(rows[0]) < value(reference[0])


PI = profile("raspberry-pi-4")


def test_the_fitted_model_gives_a_whole_its_layers_and_its_energy() -> None:
    layers = network("squeezenet")
    total, *rows, energy = modelled(layers, PI, Setting("ncnn", threads=4))
    assert 0.8 < value(total) / 46.28 < 1.2  # ncnn's own benchmark on this board
    assert total.interval is not None and total.interval.low < 46.28 < total.interval.high
    assert total.interval.level == 0.9 and not total.extrapolated
    assert "ncnn cpu, 4 threads, fp32" in total.method and "left out in turn" in total.method
    assert sum(map(value, rows)) == pytest.approx(value(total))
    assert sum(row.interval.high for row in rows if row.interval) == pytest.approx(total.interval.high)
    assert {row.layer for row in rows} <= {one.name for one in layers}
    # 3.06 W idle and 6.12 W under load, by the profile
    assert value(energy) == pytest.approx(6.12 * value(total))
    assert energy.interval is not None and energy.interval.low == pytest.approx(3.06 * total.interval.low)


def test_energy_is_unavailable_where_the_profile_has_no_power() -> None:
    energy = modelled(network("squeezenet"), profile("jetson-orin-nano"), Setting("tensorrt", "gpu-tensorrt"))[-1]
    assert (energy.name, energy.provenance) == ("energy_mj", "unavailable")


def test_attention_and_what_was_never_measured_are_marked_with_the_reason() -> None:
    attention = layer("m", "mha", macs=10**8, moved=10**6)
    total = modelled([*network("mobilenet"), attention], PI, Setting(threads=4))[0]
    plain, doubtful = (modelled(network("mobilenet"), PI, Setting(threads=4), caution=text)[0] for text in ("", "never on a DLA"))
    assert total.extrapolated and "kinds outside the networks measured here: mha" in total.method
    assert doubtful.extrapolated and doubtful.method.endswith("never on a DLA") and not plain.extrapolated
    assert doubtful.interval is not None and plain.interval is not None
    assert doubtful.interval.high / value(doubtful) == pytest.approx((plain.interval.high / value(plain)) ** 1.5)


def test_a_fit_is_taken_only_for_its_own_device_and_runtime() -> None:
    fitted = Fitted("Raspberry Pi 4B", "ncnn", "cpu", math.log(2), {}, 0.1, 0.1, 3)
    once, twice = (value(modelled(network("vgg16"), PI, Setting(threads=4), fitted=fit)[0]) for fit in (None, fitted))
    assert twice == pytest.approx(2 * once)
    with pytest.raises(DeviceError, match="not of onnxruntime on Raspberry Pi 4B"):
        modelled(network("vgg16"), PI, Setting("onnxruntime", threads=4), fitted=fitted)


def test_nothing_to_run_has_no_modelled_latency() -> None:
    for layers in ([], [layer("r", "reshape")], [layer("r", "reshape", moved=100)]):
        (row,) = modelled(layers, PI, Setting())
        assert (row.provenance, row.method) == ("unavailable", "no layer that takes time")


def test_phones_have_profiles_for_estimates_alone() -> None:
    phone = published_profile("phone-snapdragon-8-gen-2")
    assert phone.estimate_only and all(fact.source for fact in phone.facts.values())
    total = modelled(network("squeezenet"), phone, Setting(threads=4, powersave=2))[0]
    assert total.interval is not None and total.interval.low < 2.6 < total.interval.high
    with pytest.raises(DeviceError, match="phone-dimensity-9300"):
        published_profile("phone-of-clay")


def test_every_group_of_intervals_is_explained() -> None:
    assert {name.removesuffix(" gpu") if name.startswith("fitted") else name for name in constants().intervals} == (
        set(WHENCE) - set(FITTED) | {"fitted"}
    )
    assert set(FITTED) < set(WHENCE)
