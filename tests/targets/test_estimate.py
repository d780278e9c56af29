"""Estimates: the roofline as by hand, rows that add up, intervals that hold the value, strange layers widened and marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesdk_converters.cost import Layer
from edgesdk_targets.device import DeviceProfile, profile
from edgesdk_targets.estimate import RUNTIME_BYTES, SEEN_KINDS, Roofline, latency, peak_memory
from edgesdk_targets.figure import Figure

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


@pytest.mark.parametrize("path", sorted(DEVICES.glob("*.toml")), ids=lambda p: p.stem)
def test_a_faster_board_of_a_family_is_estimated_faster(path: Path) -> None:
    from edgesdk_targets.target import make

    found = profile(path.stem)
    target = make(None, found.name)
    rows = target.estimate([layer("a", macs=10**9, moved=10**6)], "fp32")
    slower = {"raspberry-pi": "raspberry-pi-zero-2-w", "jetson": "jetson-nano"}[found.target]
    if found.name != slower:
        reference = make(None, slower).estimate([layer("a", macs=10**9, moved=10**6)], "fp32")
        assert value(rows[0]) < value(reference[0])
