"""Estimates of other runtimes, of phones, and with constants of one's own: what goes in where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import edgesdk
from edgesdk_converters.errors import DeviceError, RecipeError, TargetError
from edgesdk_targets import latency_fit, latency_model
from edgesdk_targets.fpga import constants_file, hls4ml_constants
from edgesdk_targets.report import Report

from .conftest import run_here

NET = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_mobilenet.onnx"
PI = "raspberry-pi-4"


def latency(report: Report) -> Any:
    found = report.find("latency_ms")
    assert found is not None and found.value is not None and found.interval is not None
    return found


def test_another_runtime_and_fewer_threads_are_another_estimate() -> None:
    four, one = (latency(edgesdk.estimate(NET, device=PI, runtime="ncnn", threads=threads)) for threads in (4, 1))
    assert one.value > 1.5 * four.value
    assert "ncnn cpu, 4 threads" in four.method and "ncnn cpu, 1 thread," in one.method
    own = latency(edgesdk.estimate(NET, device=PI, threads=1))
    assert "onnxruntime" in own.method and own.value != one.value


def test_how_much_of_the_device_is_used_is_told_where_its_peak_is_known() -> None:
    report = edgesdk.estimate(NET, device=PI, threads=2)
    macs, peak, memory = (report.find(name) for name in ("macs", "peak_share", "memory_share"))
    assert macs is not None and macs.value and peak is not None and memory is not None
    assert peak.value == pytest.approx(2e-6 * macs.value / latency(report).value / (2 * 1.8 * 8)) and peak.interval is not None
    used = report.find("peak_memory_bytes")
    assert used is not None and used.value and memory.value == pytest.approx(used.value / 2**30)
    assert edgesdk.estimate(NET, device="jetson-orin-nano").find("peak_share") is None  # fp32 there: TF32 or not
    assert edgesdk.estimate(NET, device="jetson-orin-nano", precision="fp16").find("peak_share") is not None
    assert edgesdk.estimate("dense:16-8-4@8bit", device="ecp5-85k").find("memory_share") is None


def test_a_runtime_of_both_has_its_share_of_the_peak_where_it_computes_on_the_cpu() -> None:
    report = edgesdk.estimate(NET, device=PI, runtime="pytorch", threads=2)
    peak = report.find("peak_share")
    assert peak is not None and peak.value and "2 x 1.8 GHz x 8 FLOP" in peak.method
    assert edgesdk.estimate(NET, device="jetson-orin-nano", runtime="pytorch").find("peak_share") is None


def test_a_runtime_that_nothing_is_known_of_is_refused_and_the_known_are_named() -> None:
    with pytest.raises(TargetError, match=r"unknown runtime 'onxruntime'; .*mnn, ncnn, ncnn-vulkan, onnxruntime, .*torchscript"):
        edgesdk.estimate(NET, device=PI, runtime="onxruntime")


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime-cuda"])
@pytest.mark.parametrize("device", [PI, "phone-snapdragon-835", "this-machine"])
def test_what_computes_on_nvidias_gpus_is_estimated_on_no_other(runtime: str, device: str) -> None:
    with pytest.raises(DeviceError, match=f"{runtime} computes on NVIDIA's GPUs, and {device} has none"):
        edgesdk.estimate(NET, device=device, runtime=runtime)
    assert f"{runtime.partition('-')[0]} gpu-" in latency(edgesdk.estimate(NET, device="jetson-nano", runtime=runtime)).method


def test_a_runtime_of_both_computes_where_the_device_has_it() -> None:
    assert "pytorch cpu, 4 threads" in latency(edgesdk.estimate(NET, device=PI, runtime="pytorch")).method
    assert "pytorch gpu-cuda" in latency(edgesdk.estimate(NET, device="jetson-orin-nano", runtime="pytorch")).method


def test_threads_are_those_of_the_runtime_that_is_asked_for() -> None:
    two = latency(edgesdk.estimate(NET, device="jetson-nano", runtime="ncnn", threads=2))
    assert "ncnn cpu, 2 threads" in two.method
    with pytest.raises(TargetError, match="jetson has no threads to choose"):
        edgesdk.estimate(NET, device="jetson-nano", threads=2)
    with pytest.raises(TargetError, match="threads is 5; jetson-nano has 4 cores"):
        edgesdk.estimate(NET, device="jetson-nano", runtime="ncnn", threads=5)

    three = latency(edgesdk.estimate(NET, device=PI, runtime="ncnn", settings={"threads": "3"}))
    assert "ncnn cpu, 3 threads" in three.method


def test_a_phone_takes_no_options_of_targets_and_no_line_of_logic() -> None:
    with pytest.raises(RecipeError, match="phone-snapdragon-835 has no target, and so no option 'threads'"):
        edgesdk.estimate(NET, device="phone-snapdragon-835", settings={"threads": "2"})
    with pytest.raises(TargetError, match="'dense:16-64@8bit' is for fpga"):
        edgesdk.estimate("dense:16-64@8bit", device="phone-snapdragon-835")


def test_integers_in_a_runtime_that_was_not_measured_so_are_extrapolated() -> None:
    net = latency_model.FOLDER / "networks" / "mobilenet.json"
    ours, theirs = (latency(edgesdk.estimate(net, device=PI, runtime=r, precision="int8")) for r in ("onnxruntime", "ncnn"))
    assert ours.extrapolated and "int8 was measured in ncnn, not in onnxruntime" in ours.method
    assert not theirs.extrapolated and "not in" not in theirs.method
    own = latency(edgesdk.estimate(net, device=PI, precision="int8"))
    assert (own.value, own.interval) == (ours.value, ours.interval)


def test_memory_of_another_runtime_is_marked() -> None:
    for runtime, marked in (("ncnn", True), ("onnxruntime", False)):
        memory = edgesdk.estimate(NET, device=PI, runtime=runtime).find("peak_memory_bytes")
        assert memory is not None and memory.extrapolated is marked
        assert ("the memory of ncnn was not measured" in memory.method) is marked


def test_a_phone_is_estimated_though_nothing_can_be_exported_to_it() -> None:
    net = latency_model.FOLDER / "networks" / "resnet50.json"
    report = edgesdk.estimate(net, device="phone-snapdragon-8-gen-2")
    assert latency(report).provenance == "estimated" and "ncnn" in latency(report).method
    assert report.target == "" and any("nothing can be exported" in note for note in report.notes)
    slower = latency(edgesdk.estimate(net, device="phone-snapdragon-835"))
    assert slower.value > latency(report).value
    with pytest.raises(DeviceError, match="only estimated"):
        edgesdk.export(NET, device="phone-snapdragon-835")


def test_a_layer_list_of_integers_is_taken_as_int8(tmp_path: Path) -> None:
    name = latency_model.FOLDER / "networks" / "mobilenet.json"
    data = json.loads(name.read_text())
    fp32 = latency(edgesdk.estimate(name, device=PI, runtime="ncnn", threads=4))
    assert "fp32" in fp32.method
    for layer in data["layers"]:
        layer["int8"] = layer.get("macs", 0) > 0
    (tmp_path / "m.json").write_text(json.dumps(data | {"int8": True}))
    int8 = latency(edgesdk.estimate(tmp_path / "m.json", device=PI, runtime="ncnn", threads=4))
    assert "int8" in int8.method and int8.value < fp32.value


def test_a_fit_of_ones_own_moves_the_estimate(tmp_path: Path) -> None:
    plain = latency(edgesdk.estimate(NET, device=PI, runtime="ncnn", threads=4))
    fitted = latency_model.Fitted(PI_PUBLISHED, "ncnn", "cpu", scale=0.7, groups={}, low=0.1, high=0.1, records=3)
    (tmp_path / "fit.json").write_text(json.dumps(latency_fit.fitted_to_json(fitted)))
    moved = latency(edgesdk.estimate(NET, device=PI, runtime="ncnn", threads=4, fit=tmp_path / "fit.json"))
    assert moved.value != plain.value
    assert moved.interval.high / moved.interval.low < plain.interval.high / plain.interval.low
    with pytest.raises(DeviceError, match="the fit is of ncnn"):
        edgesdk.estimate(NET, device="raspberry-pi-5", runtime="ncnn", fit=tmp_path / "fit.json")


def test_constants_of_ones_own_move_the_estimate_of_logic(tmp_path: Path) -> None:
    settings = {"flow": "hls4ml", "reuse_factor": "1024", "strategy": "resource"}
    text = constants_file.text(hls4ml_constants.shipped())
    (tmp_path / "same.toml").write_text(text)
    spec = "dense:80-24-120@6bit"
    one, two = (
        edgesdk.estimate(spec, device="alveo-u250", settings=settings, fit=fit).find("lut")
        for fit in (None, tmp_path / "same.toml")
    )
    assert one is not None and two is not None and one.value == two.value
    with pytest.raises(TargetError, match="holds constants of logic"):
        edgesdk.estimate(NET, device=PI, fit=tmp_path / "same.toml")


PI_PUBLISHED = latency_model.PUBLISHED[PI]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (f"estimate m.onnx --device {PI} --threads 9", "has 4 cores"),
        (f"estimate m.onnx --device {PI} --runtime ncnn --threads 9", "has 4 cores"),
        (f"estimate m.onnx --device {PI} --fit absent.json", "is no fit"),
        (f"estimate m.onnx --device {PI} --fit damaged.json", "is no fit"),
        ("estimate m.onnx --device phone-nobody-has", "unknown device"),
        ("estimate m.onnx --device ecp5-85k --threads 2", "no threads to choose"),
    ],
)
def test_what_does_not_exist_is_one_line(typed: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(NET.read_bytes())
    (tmp_path / "damaged.json").write_text("{")
    done = run_here(typed, tmp_path)
    assert done.code == 1, done.err
    assert len(done.err.strip().splitlines()) <= 2
    assert told in done.err


FLOAT = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"
HLS = {"flow": "hls4ml", "strategy": "resource", "reuse_factor": "64", "io_type": "io_stream"}


def test_an_estimate_for_hls4ml_says_what_widths_it_assumes_and_takes_others() -> None:
    plain, wide = (edgesdk.estimate(FLOAT, device="zcu102", settings=HLS | more) for more in ({}, {"activation_bits": "16"}))
    assert plain.notes[0].startswith("assumed: weights of 8 bits (bits), activations of 8 (activation_bits)")
    assert "activations of 16 (activation_bits)" in wide.notes[0]
    fewer, more = plain.find("ff"), wide.find("ff")
    assert fewer is not None and more is not None and fewer.value and more.value and more.value > 1.5 * fewer.value
    assert plain.notes[0] in edgesdk.estimate(FLOAT, device="zcu102", settings=HLS).to_json()["notes"]
    for source, settings in ((FLOAT, {"flow": "rtl"}), ("dense:16-8@8bit", HLS)):
        assert not any(note.startswith("assumed") for note in edgesdk.estimate(source, device="zcu102", settings=settings).notes)


def test_a_line_of_logic_takes_other_widths_too() -> None:
    narrow, wide = (
        edgesdk.estimate("dense:40-80-12@8bit", device="zcu102", settings={"flow": "hls4ml", **more}).find("ff")
        for more in ({"activation_bits": "8", "accumulator_bits": "8"}, {})
    )
    assert narrow is not None and wide is not None and narrow.value and wide.value and narrow.value < wide.value


def test_an_estimate_that_does_not_fit_says_need_and_have_and_is_no_error(tmp_path: Path) -> None:
    typed = ["estimate", "dense:16-64-32-32-5@8bit", "--device", "pynq-z2", "--set", "flow=hls4ml"]
    done, data = run_here(typed, tmp_path), run_here([*typed, "--json"], tmp_path)
    assert done.code == data.code == 0
    flat = " ".join(done.out.split())
    assert "note: DoesNotFit, at the low end of the estimate's interval: dsp on pynq-z2 does not fit: need 2,410 DSP48E1" in flat
    assert "have 220 DSP48E1" in flat and "note: pynq-z2: of 53,200 LUT6 it needs 25,505 to 274,657: may not fit" in flat
    assert [note.partition(":")[0] for note in json.loads(data.out)["notes"]][-1].startswith("DoesNotFit")


def test_an_estimate_of_our_own_logic_says_in_what_it_does_not_fit() -> None:
    report = edgesdk.estimate("dense:16-64-32-32-5@8bit", device="ecp5-25k")
    assert any(note.startswith("DoesNotFit") and "have 28 MULT18X18D" in note for note in report.notes)
    assert edgesdk.estimate("dense:16-8@4bit", device="ecp5-85k").notes == ()


@pytest.mark.parametrize("flow", ["rtl", "hls4ml"])
def test_a_line_says_its_bits_itself(flow: str) -> None:
    with pytest.raises(RecipeError, match="dense:16-8@8bit says its bits itself, --set bits=4 would say them again"):
        edgesdk.estimate("dense:16-8@8bit", device="pynq-z2", settings={"flow": flow, "bits": "4"})


def test_an_estimate_takes_options_of_the_target_alone_as_its_help_says(tmp_path: Path) -> None:
    told = " ".join(run_here("estimate --help", tmp_path).out.split())
    assert "--set NAME=VALUE Option of the target. --json" in told
    refused = run_here("estimate dense:16-8@8bit --device pynq-z2 --set quantize.bits=4", tmp_path)
    assert refused.code == 2 and "no option 'quantize.bits'" in refused.err
