"""The fitted latency model: times as by hand, additive, scaling with facts; published rows inside their intervals; widening."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgesdk_converters.cost import Layer
from edgesdk_converters.errors import DeviceError, TargetError
from edgesdk_targets import latency_fit
from edgesdk_targets.device import profile
from edgesdk_targets.latency_model import (
    CACHE_ELEMENTS,
    COUNTS,
    PUBLISHED,
    UNSURE,
    Cluster,
    Constants,
    DeviceFacts,
    Fitted,
    Setting,
    constants,
    costs,
    counts,
    factors,
    nominal,
    operators,
    predict,
    published_devices,
    published_facts,
    read_constants,
    used_cores,
)

BOARD = DeviceFacts("board", (Cluster(4, "Cortex-A72", 2.0, 8.0),), 10.0)
NOTHING = Constants({}, {"unknown": (0.5, 0.5)}, {"|cpu": ["conv1x1", "conv", "pool"]}, (1e6, 1e10))


def pointwise(name: str = "p", macs: int = 1_000_000, rows: int = 4) -> Layer:
    return Layer(
        name, "Conv", "conv1x1", in_shapes=((1, 8, rows, rows),), out_shapes=((1, 8, rows, rows),), kernel=(1, 1), macs=macs
    )


def count(layer: Layer, precision: str = "fp32") -> dict[str, float]:
    return {name: value for name, value in zip(COUNTS, counts([layer], precision)[0], strict=True) if value}


def test_without_fitted_effects_a_product_takes_its_nominal_time() -> None:
    # 1e6 MACs = 2e6 operations at 2 GHz x 8: 0.125 ms; fetches 1e6 x 4 / 32 bytes at 10 GB/s: 0.0125 ms; 256 elements of
    # 4 bytes at 16 GB/s within caches: 6.4e-5 ms; a start of 1,000 cycles: 5e-4 ms
    found = predict([pointwise()], BOARD, Setting(threads=1), known=NOTHING)
    assert found.total_ms == pytest.approx(0.125 + 0.0125 + 6.4e-5 + 5e-4, rel=1e-6)
    assert found.low_ms == pytest.approx(found.total_ms * math.exp(-0.5))
    assert found.high_ms == pytest.approx(found.total_ms * math.exp(0.5))
    assert (found.group, found.strange) == ("unknown", ())


def test_effects_multiply_the_costs_that_have_them() -> None:
    known = replace(NOTHING, effects={"pointwise": math.log(3), "threads:d": 1.0, "dev:elsewhere": 5.0})
    pairs = costs(BOARD, Setting(threads=4))
    factor = dict(zip((cost.name for _, cost in pairs), factors(pairs, known.effects), strict=True))
    assert factor["pointwise"] == pytest.approx(3 * 4)  # threads:d is a slope on log(threads)
    assert factor["winograd"] == pytest.approx(4)
    assert factor["spill"] == factor["start"] == 1.0


def test_winograd_takes_the_tile_that_multiplies_least() -> None:
    def convolution(size: int, **other: object) -> Layer:
        shape = ((16, size, size),)
        entry = {"in_shapes": shape, "out_shapes": shape, "kernel": (3, 3), "stride": (1, 1), "dilation": (1, 1)} | other
        return Layer("c", "Conv", "conv", macs=9 * 256 * size * size, **entry)  # type: ignore[arg-type]

    # 12 = two tiles of 6: 4 x 64 products for each pair of channels; 7: two tiles of 4 a side, 4 x 36, less than 4 x 64
    assert count(convolution(12))["winograd"] == 4 * 64 * 256
    assert count(convolution(7))["winograd"] == 4 * 36 * 256
    assert count(convolution(7))["weights"] == 256 * 36
    assert count(convolution(12), "int8")["winograd"] == 9 * 36 * 256  # no tiles of 6 in int8
    for other in ({"stride": (2, 2)}, {"kernel": (5, 5)}, {"dilation": (2, 2)}):
        assert "winograd" not in count(convolution(12, **other))
        assert count(convolution(12, **other))["conv"] == 9 * 256 * 144


def test_groups_batches_and_big_tensors_are_counted() -> None:
    shape = ((1, 32, 56, 56),)
    entry = {"in_shapes": shape, "out_shapes": shape, "kernel": (3, 3), "stride": (1, 1), "macs": 1000}
    grouped = count(Layer("g", "Conv", "groupconv", groups=4, **entry))  # type: ignore[arg-type]
    assert (grouped["groups"], grouped["grouped"]) == (4, 1)
    assert grouped["winograd"] == 4 * 10 * 10 * 64 * 8 * 8
    assert "work" not in grouped
    twice = tuple((2, *s[1:]) for s in shape)
    both = count(Layer("b", "Conv", "conv", **(entry | {"in_shapes": twice, "out_shapes": twice})))  # type: ignore[arg-type]
    one = count(Layer("b", "Conv", "conv", **entry))  # type: ignore[arg-type]
    assert both["winograd"] == 2 * one["winograd"]
    assert count(Layer("big", "Add", "eltwise", out_shapes=((1, CACHE_ELEMENTS + 7),)))["spill"] == 7


def test_what_a_runtime_joins_or_drops_takes_no_time() -> None:
    first = replace(pointwise("c"), outputs=("y",))
    relu = Layer("r", "Relu", "act", inputs=("y",), in_shapes=((1, 8, 4, 4),), out_shapes=((1, 8, 4, 4),), elem_ops=128)
    assert not counts([first, relu], "fp32", fuses=True)[1].any()
    assert counts([first, relu], "fp32", fuses=False)[1].any()
    assert counts([replace(relu, inputs=("x",)), first], "fp32", fuses=True)[0].any()  # nothing before it to join
    norm = replace(relu, name="n", op="BatchNormalization", kind="norm", outputs=("z",))
    three = [first, norm, replace(relu, inputs=("z",))]
    assert not counts(three, "fp32", fuses=True)[1:].any()
    assert counts(three, "fp32", fuses=False)[1:].all(axis=0).any()
    assert counts([replace(norm, inputs=("x",)), *three[2:]], "fp32", fuses=True)[0].any()
    assert not counts([Layer("r", "Reshape", "reshape", in_shapes=((9,),), out_shapes=((9,),))], "fp32").any()
    quantised = Layer("w", "DequantizeLinear", "cast", out_shapes=((64,),), weight_bytes=64)
    assert count(quantised) == {"weights": 64, "stored": 64}  # the weights that the convolution behind it reads


@pytest.mark.parametrize("device", ["raspberry-pi-4", "jetson-orin-nano", "phone-snapdragon-8-gen-2"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_layers_add_up_to_the_whole_and_parts_too(device: str, name: str) -> None:
    layers, facts = latency_fit.network(name), published_facts(PUBLISHED[device])
    whole = predict(layers, facts, Setting(threads=4))
    assert min(whole.layers_ms) >= 0 and sum(whole.layers_ms) == pytest.approx(whole.total_ms)
    half = len(layers) // 2
    parts = [predict(part, facts, Setting(threads=4)).total_ms for part in (layers[:half], layers[half:])]
    assert sum(parts) == pytest.approx(whole.total_ms, rel=1e-9)


def test_a_clock_twice_as_fast_and_memory_too_halves_the_time() -> None:
    layers = latency_fit.network("squeezenet")
    twice = DeviceFacts("board", (Cluster(4, "Cortex-A72", 4.0, 8.0),), 20.0)
    slow, fast = (predict(layers, facts, Setting(threads=4)).total_ms for facts in (BOARD, twice))
    assert fast == pytest.approx(slow / 2, rel=1e-9)


def test_more_threads_and_wider_units_are_faster_on_a_big_network() -> None:
    layers = latency_fit.network("vgg16")
    times = [predict(layers, BOARD, Setting(threads=n)).total_ms for n in (1, 2, 4)]
    assert times[0] > times[1] > times[2] > times[0] / 4
    half = replace(BOARD, fp16_arithmetic=True)
    assert predict(layers, half, Setting(threads=1)).total_ms < times[0]


def test_int8_is_faster_with_a_dot_product() -> None:
    layers = latency_fit.network("mobilenet")
    plain, dot = (
        predict(layers, replace(BOARD, int8_dot_product=has), Setting(threads=1, precision="int8")).total_ms
        for has in (False, True)
    )
    assert dot < plain


def test_published_rows_lie_in_their_intervals() -> None:
    inside: dict[bool, list[bool]] = {True: [], False: []}
    for row in latency_fit.rows():
        found = predict(latency_fit.network(row.network), row.facts, row.setting)
        inside[row.setting.backend == "cpu"].append(found.low_ms <= row.latency_ms <= found.high_ms)
    assert len(inside[True]) > 900 and len(inside[False]) > 300
    assert np.mean(inside[True]) >= 0.9
    assert np.mean(inside[False]) >= 0.9


def test_published_times_are_near_on_devices_that_were_measured() -> None:
    # squeezenet in ncnn, best of the runs: Pi 4 with 4 threads 46.28 ms, Pi Zero 2 W 119.52 ms, Snapdragon 8 Gen 2 2.6 ms
    for device, setting, measured in (
        ("raspberry-pi-4", Setting(threads=4), 46.28),
        ("raspberry-pi-zero-2-w", Setting(threads=4), 119.52),
        ("phone-snapdragon-8-gen-2", Setting(threads=4, powersave=2), 2.60),
    ):
        found = predict(latency_fit.network("squeezenet"), published_facts(PUBLISHED[device]), setting)
        assert found.total_ms == pytest.approx(measured, rel=0.2)
        assert found.group == "measured"


def test_an_unknown_device_has_the_wider_interval_of_chips_left_out() -> None:
    layers = latency_fit.network("mobilenet")
    known = predict(layers, published_facts("Raspberry Pi 4B"), Setting(threads=4))
    stranger = predict(layers, replace(published_facts("Raspberry Pi 4B"), name="a new board"), Setting(threads=4))
    assert (known.group, stranger.group) == ("measured", "unknown")
    assert stranger.high_ms / stranger.low_ms > 1.5 * known.high_ms / known.low_ms
    assert not stranger.strange
    pi = published_facts("Raspberry Pi 4B")
    assert predict(layers, pi, Setting("mnn", threads=4)).group == "other"
    assert predict(layers, pi, Setting("opencv-dnn", threads=4)).group == "other measured"
    assert predict(layers, pi, Setting(threads=4, precision="int8")).group == "int8"


def test_attention_is_widened_and_said_so_where_only_cnns_ran() -> None:
    attention = Layer("a", "MultiHeadAttention", "mha", in_shapes=((577, 768),), out_shapes=((577, 768),), macs=200_000_000)
    layers = [*latency_fit.network("mobilenet"), attention]
    facts = published_facts("Raspberry Pi 4B")
    plain, strange = predict(layers[:-1], facts, Setting(threads=4)), predict(layers, facts, Setting(threads=4))
    assert not plain.extrapolated and strange.extrapolated
    assert "mha" in strange.strange[0]
    share = strange.layers_ms[-1] / strange.total_ms
    logs = [math.log(found.high_ms / found.low_ms) for found in (plain, strange)]
    assert logs[1] == pytest.approx(logs[0] * (1.5 + share))
    product = replace(attention, op="MatMul", kind="gemm")  # in yolo11, which ran on Orin and not on the Pi 4
    with_product = [*layers[:-1], product]
    assert predict(with_product, facts, Setting(threads=4)).extrapolated
    assert not predict(with_product, published_facts("Jetson AGX Orin"), Setting(threads=4)).extrapolated


def test_sizes_far_from_the_measured_are_widened() -> None:
    small = predict([pointwise(macs=1000)], BOARD, Setting(threads=1), known=NOTHING)
    inside = predict([pointwise(macs=2_000_000)], BOARD, Setting(threads=1), known=NOTHING)
    assert small.extrapolated and not inside.extrapolated
    assert math.log(small.high_ms / small.low_ms) == pytest.approx(1.0 + 0.5 * math.log10(1000))


def test_a_fit_of_ones_own_scales_all_or_groups_of_costs() -> None:
    one = predict([pointwise()], BOARD, Setting(threads=1), known=NOTHING)
    twice = Fitted("board", "ncnn", "cpu", math.log(2), {}, 0.1, 0.2, 3, (1,), ("fp32",), ("conv1x1",))
    found = predict([pointwise()], BOARD, Setting(threads=1), known=NOTHING, fitted=twice)
    assert found.total_ms == pytest.approx(2 * one.total_ms)
    assert math.log(found.high_ms / found.total_ms) == pytest.approx(0.2)
    assert found.group == "fitted"
    starts = replace(twice, scale=0.0, groups={"l": math.log(11)})
    more = predict([pointwise()], BOARD, Setting(threads=1), known=NOTHING, fitted=starts)
    assert more.total_ms - one.total_ms == pytest.approx(10 * 5e-4)


def test_each_way_beyond_a_fit_widens_by_half_and_is_told() -> None:
    fit = Fitted("board", "ncnn", "cpu", 0.0, {}, 0.1, 0.2, 3, (1,), ("fp32",), ("conv1x1", "norm", "act"))
    known = replace(NOTHING, seen={"|cpu": ["conv1x1", "norm"]})
    strange = Layer("n", "LRN", "norm", in_shapes=((1, 8, 4, 4),), out_shapes=((1, 8, 4, 4),))
    for setting, more, told in (
        (Setting(threads=1), [], []),
        (Setting(threads=2), [], ["fitted on 1 threads, not on 2"]),
        (Setting(threads=1, precision="fp16"), [], ["fitted in fp32, not in fp16"]),
        (Setting(threads=1), [strange], ["in none of the networks fitted to: LRN"]),
        (Setting(threads=2, precision="fp16"), [strange], ["fitted on", "fitted in", "LRN"]),
    ):
        found = predict([pointwise(), *more], BOARD, setting, known=known, fitted=fit)
        assert len(found.strange) == len(told) and all(word in line for word, line in zip(told, found.strange, strict=True))
        assert math.log(found.high_ms / found.total_ms) == pytest.approx(0.2 * (1 + UNSURE * len(told)))
        assert found.extrapolated is bool(told)
    older = predict([pointwise()], BOARD, Setting(threads=1), known=known, fitted=replace(fit, precisions=(), threads=()))
    assert "an older edgesdk" in older.strange[0]


def test_what_a_fit_knows_are_kinds_and_norms_by_name_that_take_time() -> None:
    shapes = ((1, 8, 4, 4),)
    layers = [
        Layer("c", "Conv", "conv1x1", ("x",), ("y",), shapes, shapes, kernel=(1, 1), macs=1000),
        Layer("b", "BatchNormalization", "norm", ("y",), ("z",), shapes, shapes),
        Layer("l", "LRN", "norm", ("z",), ("v",), shapes, shapes),
        Layer("r", "Reshape", "reshape", ("v",), ("w",), shapes, shapes),
    ]
    assert operators(layers, counts(layers, "fp32", fuses=True)) == ("LRN", "conv1x1")
    assert operators(layers, counts(layers, "fp32")) == ("BatchNormalization", "LRN", "conv1x1")


def test_cores_are_taken_as_ncnn_does() -> None:
    phone = published_facts("Phone Snapdragon 8 Gen 2")
    big = used_cores(phone, Setting(threads=4, powersave=2))
    assert [c.core for c in big] == ["Cortex-X3", "Cortex-A715", "Cortex-A715", "Cortex-A710"]
    assert {c.core for c in used_cores(phone, Setting(threads=3, powersave=1))} == {"Cortex-A510"}
    assert len(used_cores(phone, Setting())) == 8
    with pytest.raises(DeviceError, match="has 8 cores"):
        used_cores(phone, Setting(threads=9))


def test_facts_come_from_rows_configurations_and_profiles() -> None:
    stock, overclocked = (published_facts("Raspberry Pi 5", config) for config in ("stock", "overclock-cpu2.9GHz-gpu1.1GHz"))
    assert (stock.clusters[0].clock_ghz, overclocked.clusters[0].clock_ghz) == (2.4, 2.9)
    assert published_facts("Raspberry Pi 4B", "zoo-1.5GHz").clusters[0].clock_ghz == 1.5
    orin, boosted = published_facts("Jetson Orin Nano"), published_facts("Jetson Orin Nano", "super-25W-1020MHz")
    assert orin.name == boosted.name and boosted.gpu_fp32_gflops > 1.5 * orin.gpu_fp32_gflops
    assert DeviceFacts.from_profile(profile("raspberry-pi-5")) == stock
    unmeasured = DeviceFacts.from_profile(profile("jetson-orin-nx"))
    assert unmeasured.cores == 8 and unmeasured.gpu_fp16_gflops > orin.gpu_fp16_gflops
    for name in PUBLISHED.values():
        assert published_facts(name).cores == int(published_devices()[name]["cpu_total_cores"])


def test_a_gpu_without_a_published_peak_is_estimated_with_its_own_interval() -> None:
    phone = replace(published_facts("Phone Dimensity 9300"), name="another phone")
    found = predict(latency_fit.network("resnet50"), phone, Setting("ncnn", "gpu-vulkan"))
    assert phone.gpu_fp32_gflops == 0 and found.group == "unknown gpu without peak" and found.total_ms > 0


def test_bad_input_is_refused_in_one_line() -> None:
    with pytest.raises(DeviceError, match="above 0"):
        DeviceFacts("board", (Cluster(4, "Cortex-A72", 0.0, 8.0),), 10.0)
    with pytest.raises(DeviceError, match="cannot be read"):
        DeviceFacts.from_row({"device": "x", "cpu_clusters": "many cores"})
    with pytest.raises(DeviceError, match="no published device"):
        published_facts("Commodore 64")
    with pytest.raises(TargetError, match="backend"):
        Setting(backend="abacus")
    with pytest.raises(TargetError, match="precision"):
        Setting(precision="w4")
    with pytest.raises(TargetError, match="threads"):
        Setting(threads=0)
    with pytest.raises(TargetError, match="takes time"):
        predict([Layer("r", "Reshape", "reshape")], BOARD, Setting())
    with pytest.raises(DeviceError, match="GPU"):
        predict([pointwise()], BOARD, Setting("ncnn", "gpu-vulkan"))
    with pytest.raises(DeviceError, match="constants"):
        read_constants('{"effects": 3}')


def test_every_group_that_can_be_asked_for_has_an_interval() -> None:
    known = constants()
    layers = latency_fit.network("mobilenet")
    for name in PUBLISHED.values():
        for facts in (published_facts(name), replace(published_facts(name), name="new")):
            for backend in ("cpu", "gpu-vulkan", "gpu-cuda", "gpu-tensorrt"):
                for precision in ("fp32", "fp16", "int8"):
                    if backend == "cpu" or facts.gpu:
                        found = predict(layers, facts, Setting("ncnn" if backend == "cpu" else "x", backend, None, precision))
                        assert found.group in known.intervals
                        assert 0 < found.low_ms < found.total_ms < found.high_ms


def test_nominal_times_of_layers_add_up_to_those_of_the_network() -> None:
    for setting in (Setting(threads=4), Setting("ncnn", "gpu-vulkan")):
        pairs = costs(published_facts("Jetson Nano"), setting)
        each = counts(latency_fit.network("shufflenet"), "fp32")
        assert nominal(each, pairs).sum(axis=0) == pytest.approx(nominal(each.sum(axis=0, keepdims=True), pairs)[0])


def test_a_prediction_needs_numpy_alone() -> None:
    code = (
        "import sys; sys.modules['onnx'] = sys.modules['torch'] = sys.modules['onnxruntime'] = None\n"
        "from edgesdk_converters.cost import Layer\n"
        "from edgesdk_targets.latency_model import Setting, predict, published_facts\n"
        "layer = Layer('c', 'Conv', 'conv1x1', in_shapes=((8, 4, 4),), out_shapes=((8, 4, 4),), macs=1000)\n"
        "print(predict([layer], published_facts('Raspberry Pi 4B'), Setting()).total_ms > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
