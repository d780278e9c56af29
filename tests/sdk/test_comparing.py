"""Comparing models on all devices: everybody is asked, nobody's refusal ends it, and a bundle speaks for its own device."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import edgesdk
from edgesdk import comparing_sources, estimating
from edgesdk.comparing import Comparison, compare, known_devices
from edgesdk.comparing_entries import CELLS, Asking, Entry
from edgesdk_converters.errors import BundleError, DeviceError, EdgeError, ModelError
from edgesdk_targets import board_facts, runner
from edgesdk_targets.bundle import open_bundle
from edgesdk_targets.device import cpu_model, of_target
from edgesdk_targets.figure import Figure, unavailable
from edgesdk_targets.latency_model import PUBLISHED
from edgesdk_targets.report import Report

from .conftest import graph_model, run_here

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "build" / "models"
VIT = ROOT / "examples" / "fashion" / "fashion_vit.onnx"
BLAZEFACE = ROOT / "targets" / "edgesdk_targets" / "published_latency" / "networks" / "blazeface.json"
PI = "raspberry-pi-4"


@pytest.fixture(scope="module")
def resnet8() -> Comparison:
    return compare([MODELS / "resnet8.onnx"])


def entry(found: Comparison, device: str, runtime: str = "", model: int = 0) -> Entry:
    (one,) = [e for e in found.models[model].entries if e.way.device == device and runtime in ("", e.way.runtime)]
    return one


def test_it_is_part_of_the_face() -> None:
    assert edgesdk.compare is compare and "compare" in edgesdk.__all__


def test_every_device_is_asked_and_an_fpga_once_for_each_flow_that_it_has(resnet8: Comparison) -> None:
    asked = [(e.way.device, e.way.runtime) for e in resnet8.models[0].entries]
    assert len(set(asked)) == len(asked)
    assert {device for device, _ in asked} == set(known_devices()) == set(resnet8.devices)
    assert set(PUBLISHED) <= set(resnet8.devices)
    for profile in of_target("fpga"):
        flows = {runtime for device, runtime in asked if device == profile.name}
        assert flows == ({"rtl"} if profile.get("family", str) == "ecp5" else {"rtl", "hls4ml"})


def test_every_cell_is_a_figure_and_every_gap_says_why(resnet8: Comparison) -> None:
    for e in resnet8.models[0].entries:
        assert tuple(e.cells) == CELLS
        for row in e.cells.values():
            assert row.value is not None or (row.provenance == "unavailable" and len(row.method) > 10)


def test_the_fastest_comes_first_and_what_has_no_latency_last(resnet8: Comparison) -> None:
    values = [e.latency.value for e in resnet8.models[0].entries]
    known = [value for value in values if value is not None]
    assert known == sorted(known) and values[: len(known)] == known and len(known) > 15


@pytest.mark.parametrize("device", [PI, "jetson-orin-nano", "phone-snapdragon-8-gen-2"])
def test_a_cell_is_what_estimate_says_of_that_device(resnet8: Comparison, device: str) -> None:
    alone = edgesdk.estimate(MODELS / "resnet8.onnx", device=device)
    e = entry(resnet8, device)
    for name in ("latency_ms", "peak_memory_bytes", "energy_mj"):
        assert e.cells[name] == alone.find(name)
    assert e.heaviest(3)[0].value == max(row.value or 0 for row in alone.rows if row.layer and row.name == "latency_ms")


def test_logic_that_does_not_fit_is_refused_with_its_reason_while_what_it_takes_is_told(resnet8: Comparison) -> None:
    small = entry(resnet8, "ecp5-25k")
    assert small.refused.startswith(f"does not fit: needs at least {small.logic['dsp'].value} MULT18X18D, ecp5-25k has 28")
    assert all(row.value is None and row.method == small.refused for row in small.cells.values())
    assert (small.logic["dsp"].value or 0) > 28
    large = entry(resnet8, "ecp5-85k")
    assert not large.refused and large.latency.value is not None and large.latency.interval is not None
    assert large.latency.value == pytest.approx(large.logic["cycles"].value / large.logic["fmax_mhz"].value / 1e3)  # type: ignore[operator]


def test_a_part_whose_clock_nobody_knows_has_a_gap_not_a_guess(resnet8: Comparison) -> None:
    e = entry(resnet8, "zcu102", "rtl")
    assert e.latency.value is None and "no clock was ever seen" in e.latency.method
    assert e.logic["cycles"].value and not e.refused


def test_a_network_that_a_flow_refuses_is_designed_once_and_told_for_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = estimating.of_layers

    def counted(*arguments: object, **options: object) -> object:
        asked.append((options["device"], dict(options["settings"]).get("flow")))  # type: ignore[call-overload]
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(estimating, "of_layers", counted)
    found = compare([VIT], devices=["zcu102", "ecp5-25k", "ecp5-85k"])
    assert sorted(asked) == [("zcu102", "hls4ml"), ("zcu102", "rtl")]
    for device, runtime in (("zcu102", "rtl"), ("ecp5-25k", "rtl"), ("ecp5-85k", "rtl"), ("zcu102", "hls4ml")):
        e = entry(found, device, runtime)
        assert "cannot run node" in e.refused and e.latency.where == device and not e.takes_logic


def test_devices_are_those_asked_for_once_each_and_an_unknown_one_lists_the_known() -> None:
    found = compare([BLAZEFACE], devices=f"{PI},jetson-nano,{PI}")
    assert found.devices == (PI, "jetson-nano") and len(found.models[0].entries) == 2
    with pytest.raises(DeviceError, match=r"unknown device 'raspberry-pi-9'; known: .*raspberry-pi-4"):
        compare([BLAZEFACE], devices=["raspberry-pi-9"])
    with pytest.raises(DeviceError, match="no device given"):
        compare([BLAZEFACE], devices=" , ")


def test_a_layer_list_is_estimated_and_has_neither_cuts_nor_accuracy(folder: Path) -> None:
    found = compare([BLAZEFACE], devices=PI, data=folder / "check.npz").models[0]
    assert found.entries[0].latency.value and found.entries[0].latency.provenance == "estimated"
    assert found.survey is None and "layer list" in found.no_cuts and "layer list" in found.accuracy.method


def test_a_precision_that_a_target_lacks_is_a_refusal_of_that_target_alone() -> None:
    found = compare([BLAZEFACE], devices=[PI, "jetson-nano", "ecp5-85k"], precision="w8")
    assert entry(found, PI).latency.value
    assert "jetson has no precision 'w8'" in entry(found, "jetson-nano").refused
    assert "fpga has no precision 'w8'" in entry(found, "ecp5-85k").refused
    size = entry(found, PI).cells["size"]
    assert size.value is None and "known after an export" in size.method


def test_threads_go_where_there_are_some_and_too_many_are_refused_there() -> None:
    one, many = (compare([BLAZEFACE], devices=[PI, "jetson-nano"], threads=count) for count in (1, 99))
    assert "1 thread," in entry(one, PI).latency.method and entry(one, "jetson-nano").latency.value
    assert "99" in entry(many, PI).refused and entry(many, "jetson-nano").latency.value


def test_another_runtime_is_asked_of_processors_and_refused_by_logic() -> None:
    found = compare([BLAZEFACE], devices=[PI, "ecp5-85k"], runtime="ncnn")
    assert entry(found, PI).way.runtime == "ncnn" and "ncnn cpu" in entry(found, PI).latency.method
    assert "logic has no runtime" in entry(found, "ecp5-85k").refused


def test_a_bundle_speaks_for_its_own_device_and_is_estimated_on_the_others(folder: Path) -> None:
    found = compare([folder / "older.edge"], devices=["raspberry-pi-5", "phone-snapdragon-835"])
    bundle = open_bundle(folder / "older.edge")
    own = entry(found, bundle.manifest.device)
    report = bundle.report()
    assert own.own and own.cells["size"] == report.find("artifact_bytes")
    assert own.cells["latency_ms"] == report.find("latency_ms")
    assert {row.name for row in own.rows} >= {
        row.name for row in report.rows if row.where == "artifact" and row.segment == "whole"
    }
    others = [e for e in found.models[0].entries if e is not own]
    assert others and all(e.latency.provenance == "estimated" and not e.own for e in others)


def rewritten(path: Path, **changes: object) -> None:
    """A report with a latency that was measured, and other facts of the machine."""
    report = json.loads(path.read_text())
    row = next(row for row in report["rows"] if row["name"] == "latency_ms" and row["layer"] is None)
    row.update({"value": 123.0, "provenance": "measured", "where": "the machine", "method": "timed", "n": 20})
    row.update({"interval": None, "extrapolated": False})
    report["rows"].append({**row, "layer": "dense"})
    report["machine"].update(changes)
    path.write_text(json.dumps(report))


def test_a_bundles_own_row_is_its_report_alone_whatever_the_command_asks_for(folder: Path) -> None:
    report = open_bundle(folder / "older.edge").report()
    for options in ({}, {"precision": "int8"}, {"runtime": "ncnn"}, {"threads": 99}, {"precision": "nothing"}):
        own = entry(compare([folder / "older.edge"], devices=[PI, "raspberry-pi-5"], **options), PI)
        assert own.own and not own.refused and (own.precision, own.way.runtime) == ("fp32", "onnxruntime")
        assert own.cells["latency_ms"] == report.find("latency_ms") and own.cells["size"] == report.find("artifact_bytes")
        assert all(row in report.rows for row in own.rows)
        assert own.cells["accuracy"].value is None and own.cells["accuracy"].method == "the bundle's report has no accuracy"


def test_a_bundle_of_logic_speaks_for_its_part_with_the_latency_of_its_cycles_at_its_clock(logic: Path) -> None:
    found = compare([logic], devices=["pynq-z2", "zcu102"], precision="fp32", runtime="ncnn")
    own, report = entry(found, "pynq-z2", "hls4ml"), open_bundle(logic).report()
    assert own.own and not own.refused and own.precision == "fixed" and set(own.logic) >= {"lut", "cycles", "fmax_mhz"}
    assert all(row == report.find(name) for name, row in own.logic.items())
    cycles, fmax = own.logic["cycles"], own.logic["fmax_mhz"]
    assert cycles.value and fmax.value and fmax.value > 125
    assert own.latency.value == pytest.approx(cycles.value / 125e3) and "125 MHz, the clock asked for" in own.latency.method
    assert own.latency.provenance == "estimated" and own.latency.interval is not None and own.latency in own.rows
    size = own.cells["size"]
    assert size.value is None and "weights become logic" in size.method
    assert entry(found, "pynq-z2", "rtl").refused and not entry(found, "pynq-z2", "rtl").own


def without_report(folder: Path, config: dict[str, str], **asked: str) -> list[Entry]:
    """What is asked for a bundle of logic that lost its report."""
    bundle = open_bundle(folder / "older.edge")
    runtime = replace(bundle.manifest.runtime, name="fpga", config=config)
    manifest = replace(bundle.manifest, device="ecp5-25k", target="fpga", precision="fixed", runtime=runtime)
    (subject,) = comparing_sources.open_subjects([folder / "m.onnx"], {}, runner.silent)
    subject = replace(subject, bundle=replace(bundle, manifest=manifest), precision="fixed")
    asking = {"precision": "", "runtime": "", **asked}
    return Asking(
        subject, unavailable("accuracy", "here", "no samples"), asking["precision"], 0, asking["runtime"], runner.silent
    ).entries(["ecp5-25k", "ecp5-85k"])


def test_a_bundle_of_logic_without_its_report_is_estimated_as_it_was_made(folder: Path) -> None:
    config = {"flow": "rtl", "form": "folded", "multipliers": "1", "clock_mhz": "20", "top": "network_serial"}
    other, own = without_report(folder, config)
    assert own.way.device == "ecp5-25k" and not own.own and not own.refused and own.precision == "fixed"
    assert own.way.settings == {"flow": "rtl", "form": "folded", "multipliers": "1", "clock_ns": "50"}
    assert own.logic["cycles"].value and other.logic["cycles"].value
    assert own.logic["cycles"].value > 4 * other.logic["cycles"].value
    other, again = without_report(folder, config, precision="int8", runtime="ncnn")
    assert again.latency == own.latency and not again.refused and other.refused


@pytest.mark.parametrize("clock", [{}, {"clock_mhz": "0"}, {"clock_ns": "soon"}, {"clock_ns": "nan"}])
def test_logic_whose_manifest_tells_no_clock_is_one_error(folder: Path, clock: dict[str, str]) -> None:
    with pytest.raises(BundleError, match="does not tell the clock"):
        without_report(folder, {"flow": "rtl", **clock})


@pytest.fixture(scope="module")
def made_logic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense layer as a project of hls4ml, with a reuse factor and a clock of its own."""
    rng = np.random.default_rng(5)
    out = tmp_path_factory.mktemp("logic") / "net.edge"
    settings = {"flow": "hls4ml", "reuse_factor": "4", "strategy": "resource", "clock_ns": "8"}
    data = {"x": rng.standard_normal((300, 8)).astype(np.float32)}
    layer = helper.make_node("Gemm", ["x", "w"], ["y"], name="dense")
    weights = numpy_helper.from_array(rng.standard_normal((8, 4)).astype(np.float32), "w")
    onnx.save(graph_model([layer], weights=[weights]), out.with_name("net.onnx"))
    edgesdk.export(out.with_name("net.onnx"), device="pynq-z2", settings=settings, data=data, max_relative_error=0.5, out=out)
    return out


@pytest.fixture
def logic(made_logic: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_logic.parent, tmp_path / "logic")
    return tmp_path / "logic" / made_logic.name


def test_a_bundle_without_its_report_is_asked_for_its_own_precision_and_runtime(folder: Path) -> None:
    (folder / "older.report.json").unlink()
    plain = entry(compare([folder / "older.edge"], devices=PI), PI)
    asked = entry(compare([folder / "older.edge"], devices=PI, precision="int8", runtime="ncnn"), PI)
    assert asked.latency == plain.latency and (asked.precision, asked.way.runtime) == ("fp32", "onnxruntime")
    others = compare([folder / "older.edge"], devices="raspberry-pi-5").models[0].entries
    assert [one.way.device for one in others] == ["raspberry-pi-5"]


@pytest.mark.parametrize("here", [True, False])
def test_what_another_computer_measured_is_not_this_machines(folder: Path, here: bool) -> None:
    assert run_here("export m.onnx --device this-machine --out mine.edge", folder).code == 0
    rewritten(folder / "mine.report.json", cpu=cpu_model() if here else "another CPU", is_device=True)
    found = entry(compare([folder / "mine.edge"], devices="this-machine"), "this-machine")
    assert found.own and not found.refused
    if here:
        assert found.latency.value == 123.0 and found.latency.provenance == "measured"
    else:
        assert found.latency.value is None and "of another machine: the machine" in found.latency.method


@pytest.mark.parametrize("there", [True, False])
def test_what_another_machine_measured_is_never_the_devices_latency(folder: Path, there: bool) -> None:
    measured = Figure("latency_ms", 123.0, "measured", "the machine", "timed", n=20)
    rewritten(folder / "older.report.json", is_device=there)
    own = entry(compare([folder / "older.edge"], devices=PI), PI)
    found = own.latency
    assert [row.layer for row in own.heaviest(3)] == (["dense"] if there else [])
    assert found == measured if there else (found.value is None and "of another machine: the machine" in found.method)


def test_a_bundle_without_its_report_is_estimated_and_says_so(folder: Path) -> None:
    (folder / "older.report.json").unlink()
    found = compare([folder / "older.edge"], devices=PI).models[0]
    assert not found.entries[0].own and found.entries[0].latency.provenance == "estimated"
    assert any("its report is missing" in note for note in found.notes)


def test_accuracy_is_this_machines_alone(folder: Path) -> None:
    data = np.load(folder / "check.npz")
    found = compare([folder / "m.onnx", VIT], devices=[PI, "this-machine"], data=folder / "check.npz")
    here = entry(found, "this-machine").cells["accuracy"]
    assert (
        here.value == 1.0 and here.provenance == "measured" and here.where.startswith("this machine") and here.n == len(data["x"])
    )
    elsewhere = entry(found, PI).cells["accuracy"]
    assert elsewhere.value is None and "only the model itself" in elsewhere.method
    assert "the model's inputs are image" in found.models[1].accuracy.method


def test_the_accuracy_of_a_bundle_stands_with_its_own_device_only(folder: Path) -> None:
    found = compare([folder / "older.edge"], devices=[PI, "raspberry-pi-5"], data=folder / "check.npz")
    assert entry(found, PI).cells["accuracy"].value == 1.0 and "artefact" in entry(found, PI).cells["accuracy"].method
    assert entry(found, "raspberry-pi-5").cells["accuracy"].value is None


def test_what_an_emulator_computed_is_not_measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(board_facts.EMULATOR, "qemu-aarch64")
    found = compare([folder / "m.onnx", folder / "older.edge"], devices=PI, data=folder / "check.npz")
    assert [one.accuracy.provenance for one in found.models] == ["emulated", "emulated"]


def test_a_bundle_whose_network_cannot_be_read_says_that_and_is_no_layer_list(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing_sources, "_network", lambda bundle: (None, (), "it holds no ONNX network"))
    found = compare([folder / "older.edge"], devices=[PI, "raspberry-pi-5"], data=folder / "check.npz").models[0]
    assert found.no_cuts == "it holds no ONNX network" and found.accuracy.value == 1.0
    by_device = {e.way.device: e for e in found.entries}
    assert by_device["raspberry-pi-5"].refused == "it holds no ONNX network" and not by_device[PI].refused


def test_weights_are_told_to_be_the_models_or_the_bundles(folder: Path) -> None:
    found = compare([folder / "m.onnx", folder / "older.edge"], devices="raspberry-pi-5")
    model, bundle = (entry(found, "raspberry-pi-5", model=index).cells["size"] for index in (0, 1))
    assert "of the model as it came" in model.method and bundle.method == "weights of the network in the bundle"


@pytest.mark.parametrize("reason", ["", "no constants for this part"])
def test_a_report_without_area_or_without_known_area_refuses_no_other_part(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    asked = []

    def gaps(name: str, layers: object, *, device: str, **options: object) -> Report:
        asked.append(device)
        rows = tuple(unavailable(name, device, reason) for name in ("lut", "ff") if reason)
        return Report(name, "fpga", device, "", rows)

    monkeypatch.setattr(estimating, "of_layers", gaps)
    found = compare([BLAZEFACE], devices=["ecp5-25k", "ecp5-85k"])
    assert asked == ["ecp5-25k", "ecp5-85k"]
    assert [e.refused for e in found.models[0].entries] == [reason, reason]


def test_a_shape_goes_to_the_model_that_has_its_input(folder: Path) -> None:
    found = compare([folder / "dynamic.onnx", VIT], devices=PI, shapes={"x": (4, 8)})
    assert found.models[0].macs == 4 * 8 * 4
    with pytest.raises(ModelError, match="--shape z: no model here"):
        compare([folder / "m.onnx"], devices=PI, shapes={"z": (1,)})
    with pytest.raises(ModelError, match="static"):
        compare([folder / "dynamic.onnx"], devices=PI)


def test_two_of_one_name_are_told_apart_by_where_they_come_from(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "b" / "m.onnx").write_bytes((folder / "m.onnx").read_bytes())
    found = compare([folder / "m.onnx", folder / "b" / "m.onnx", folder / "older.zip"], devices=PI)
    assert [one.name for one in found.models] == [str(folder / "m.onnx"), str(folder / "b" / "m.onnx"), "older.zip"]


def test_a_source_that_cannot_be_opened_ends_it_before_any_estimate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "of_layers", lambda *_, **__: pytest.fail("something was estimated"))
    for source in ("gone.onnx", "gone.edge", "gone.json", "x.npz"):
        with pytest.raises(EdgeError):
            compare([folder / "m.onnx", folder / source])
    with pytest.raises(ModelError):
        compare([folder / "m.onnx"], data=folder / "m.onnx")
    with pytest.raises(ModelError, match="nothing to compare"):
        compare([])


def test_a_split_bundle_is_refused_with_what_to_give_instead(split: object) -> None:
    with pytest.raises(BundleError, match="a split model") as caught:
        compare([split.path], devices=PI)  # type: ignore[attr-defined]
    assert "edgesdk plan" in caught.value.hint


def test_the_verb_prints_a_table_or_one_document(folder: Path) -> None:
    shown = run_here(["compare", "m.onnx", "older.edge", "--devices", f"{PI},ecp5-25k"], folder)
    assert shown.code == 0 and "m (model)" in shown.out and "older.edge (bundle)" in shown.out
    told = run_here(["compare", "m.onnx", "--devices", PI, "--json"], folder)
    assert json.loads(told.out)["command"] == f"edgesdk compare m.onnx --devices {PI} --json"
    assert run_here(["compare"], folder).code == 2
    assert run_here(["compare", "m.onnx", "--devices", "nothing"], folder).error["kind"] == "DeviceError"
