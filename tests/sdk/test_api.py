"""The verbs as Python: what they return, and that nothing measured here passes for the board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgesdk
from edgesdk import api
from edgesdk_converters.errors import ContractBroken, DeviceError, TargetError
from edgesdk_targets import bundle as bundles
from edgesdk_targets.bundle import Provider, open_bundle
from edgesdk_targets.device import total_memory_bytes
from edgesdk_targets.figure import Figure
from edgesdk_targets.report import Report

ROOT = Path(__file__).parents[2]
CNN = ROOT / "examples" / "fashion" / "fashion_cnn.onnx"


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "cnn-pi.edge"
    edgesdk.export(CNN, device="raspberry-pi-4", out=path)
    return path


@pytest.fixture(scope="module")
def jetson(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("api") / "cnn-jetson.edge"
    edgesdk.export(CNN, target="jetson", precision="fp16", out=path)
    return path


def rewritten(path: Path, out: Path, **changes: object) -> Path:
    """A bundle whose manifest says something else, sealed properly."""
    bundle = open_bundle(path)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    bundles.write(out, replace(bundle.manifest, **changes), files)  # type: ignore[arg-type]
    return out


def test_export_gives_the_bundle_and_its_report_beside_it(pi: Path) -> None:
    bundle = open_bundle(pi)
    report = bundle.report()
    assert report.bundle == bundle.digest
    assert {"latency_ms", "peak_memory_bytes", "artifact_bytes", "macs", "params", "relative_error"} <= {
        r.name for r in report.rows
    }
    latency = report.find("latency_ms")
    assert latency is not None and latency.provenance == "estimated" and latency.where == "raspberry-pi-4"


def test_no_time_of_this_machine_is_in_the_bundle(pi: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.edge"
    edgesdk.export(CNN, device="raspberry-pi-4", out=again)
    assert open_bundle(again).digest == open_bundle(pi).digest


def test_measured_rows_name_this_machine_and_the_board_stays_unavailable(pi: Path) -> None:
    report = edgesdk.measure(pi, runs=30)
    measured = [r for r in report.rows if r.name == "latency_ms" and r.provenance == "measured"]
    assert len(measured) == 1 and "raspberry" not in measured[0].where and measured[0].n == 30
    assert "p99" not in measured[0].percentiles
    device = report.find("latency_ms", "device")
    assert device is not None and device.provenance == "unavailable"


def test_a_run_on_its_device_tells_how_much_of_it_was_used_and_on_another_does_not(pi: Path, tmp_path: Path) -> None:
    assert edgesdk.measure(pi, runs=3).find("memory_share") is None
    here = edgesdk.export(CNN, target="server", out=tmp_path / "here.edge").path
    report = edgesdk.measure(here, runs=3)
    memory, used = report.find("memory_share"), report.find("peak_memory_bytes")
    assert memory is not None and used is not None and used.value
    assert memory.provenance == "measured" and memory.value == pytest.approx(used.value / total_memory_bytes())
    here.with_name("here.report.json").unlink()
    assert edgesdk.measure(here, runs=3).find("memory_share") is None  # nothing says how much work it is


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"threads": 2}, "2 x 1.8 GHz x 8 FLOP a cycle"),
        ({}, ""),  # threads that are not known are not all cores
        ({"threads": 2, "fallback": True}, ""),
    ],
)
def test_the_share_of_a_peak_is_told_only_where_it_is_known_what_computed(pi: Path, facts: dict[str, object], told: str) -> None:
    shares = shares_of(pi, "raspberry-pi-4", facts)
    assert (told in shares["peak_share"].method) if told else "peak_share" not in shares
    assert "memory_share" in shares


def test_a_gpus_peak_is_told_only_where_the_gpu_computed(jetson: Path) -> None:
    device = open_bundle(jetson).manifest.device
    assert "of the GPU" in shares_of(jetson, device, {})["peak_share"].method
    assert set(shares_of(jetson, device, {"fallback": True, "threads": 2})) == {"memory_share"}


def test_a_split_run_has_no_peak_of_its_heads_precision(pi: Path, tmp_path: Path) -> None:
    split = rewritten(pi, tmp_path / "split.edge", role="split")
    made = replace(open_bundle(pi).report(), bundle=open_bundle(split).digest)
    made.save(bundles.report_path(split))
    assert set(shares_of(split, "raspberry-pi-4", {"threads": 2})) == {"memory_share"}


def shares_of(path: Path, device: str, facts: dict[str, object]) -> dict[str, Figure]:
    """What a run there would tell that took 10 ms and 1 GB."""
    manifest = open_bundle(path).manifest
    rows = (
        Figure("latency_ms", 10.0, "measured", device, "a run", n=3),
        Figure("peak_memory_bytes", 10**9, "measured", device, "a run", n=1),
    )
    machine = {"is_device": True, "precision": manifest.precision, **facts}
    run = Report(manifest.name, manifest.target, device, manifest.digest, rows, machine=machine)
    return {row.name: row for row in api._shares(path, run)}


def test_measuring_on_anything_but_this_machine_is_refused(pi: Path) -> None:
    with pytest.raises(DeviceError, match="local"):
        edgesdk.measure(pi, on="pi:7860")


def test_verify_of_a_jetson_bundle_here_is_pending_and_says_on_what_it_ran(jetson: Path) -> None:
    report = edgesdk.verify(jetson)
    assert report.contract.status == "pending"
    row, device = report.find("relative_error"), report.find("relative_error", "device")
    assert row is not None and "CPUExecutionProvider" in row.method
    assert device is not None and device.provenance == "unavailable"


def test_verify_notices_an_artefact_that_computes_something_else(pi: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    bundle = open_bundle(pi)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    proto = onnx.ModelProto.FromString(files["model.onnx"])
    last = proto.graph.initializer[0]
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * 1.01, last.name))
    files["model.onnx"] = proto.SerializeToString()
    other = tmp_path / "other.edge"
    bundles.write(other, bundle.manifest, files)
    with pytest.raises(ContractBroken, match="golden"):
        edgesdk.verify(other)


def test_build_of_a_bundle_without_a_plan_has_nothing_to_do(pi: Path) -> None:
    report = edgesdk.build(pi)
    assert report.rows == () and "nothing to build" in report.notes[0]


def test_build_needs_the_provider_that_the_bundle_runs_on(jetson: Path) -> None:
    with pytest.raises(DeviceError, match="TensorrtExecutionProvider"):
        edgesdk.build(jetson)


def test_build_warms_up_checks_and_counts_nodes(jetson: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan with a provider that is here: what a board does, but for TensorRT itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runtime = replace(open_bundle(jetson).manifest.runtime, providers=(Provider("CPUExecutionProvider"),))
    path = rewritten(jetson, tmp_path / "warm.edge", runtime=runtime)
    said: list[str] = []
    report = edgesdk.build(path, progress=said.append)
    build, nodes = report.find("build_ms"), report.find("provider_nodes", "CPUExecutionProvider")
    assert build is not None and build.provenance == "measured"
    assert nodes is not None and nodes.value is not None and nodes.value > 3
    assert any("engine" in message for message in said)
    assert str(tmp_path / "cache") in report.notes[0]


def test_estimates_grow_with_the_model_and_shrink_with_the_board() -> None:
    def latency(model: str, device: str) -> float:
        figure = edgesdk.estimate(ROOT / "examples" / "fashion" / f"fashion_{model}.onnx", device=device).find("latency_ms")
        assert figure is not None and figure.value is not None and figure.provenance == "estimated"
        assert figure.interval is not None and figure.interval.low < figure.value < figure.interval.high
        return figure.value

    assert latency("cnn", "raspberry-pi-4") < latency("resnet", "raspberry-pi-4")
    assert latency("resnet", "raspberry-pi-5") < latency("resnet", "raspberry-pi-4") < latency("resnet", "raspberry-pi-zero-2-w")


def test_attention_is_marked_as_outside_what_the_estimator_has_seen() -> None:
    figure = edgesdk.estimate(ROOT / "examples" / "fashion" / "fashion_vit.onnx", device="raspberry-pi-4").find("latency_ms")
    assert figure is not None and figure.extrapolated


def test_boards_that_are_only_estimated_are_estimated_and_refused_for_export() -> None:
    report = edgesdk.estimate(CNN, device="jetson-nano")
    assert report.find("latency_ms") is not None and "nothing can be exported" in report.notes[0]
    with pytest.raises(DeviceError, match="jetson-nano"):
        edgesdk.export(CNN, device="jetson-nano", out="never.edge")


def test_inspect_tells_models_from_bundles(pi: Path) -> None:
    model, bundle = edgesdk.inspect(CNN), edgesdk.inspect(pi)
    assert model["kind"] == "model" and model["costs"]["params"] == 60874
    assert bundle["kind"] == "bundle" and bundle["runtime"]["providers"] == ["CPUExecutionProvider"]


def test_an_unknown_precision_lists_those_the_target_has() -> None:
    with pytest.raises(TargetError, match="fp32, fp16"):
        edgesdk.export(CNN, device="raspberry-pi-4", precision="int3", out="never.edge")


def test_data_may_be_given_as_arrays() -> None:
    from edgesdk.exporting import prepare

    rng = np.random.default_rng(0)
    data = {"image": rng.standard_normal((200, 1, 28, 28)).astype(np.float32)}
    prepared = prepare(CNN, device="raspberry-pi-5", precision="fp16", data=data, max_drop=1.0, task="classify")
    accuracy = prepared.report.find("accuracy")
    assert accuracy is not None and "agreement" in accuracy.method
