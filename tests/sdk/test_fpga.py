"""Exports for FPGAs from end to end: levels that agree to the bit, what the tools report, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.errors import (
    BundleError,
    ContractBroken,
    DeviceError,
    DoesNotFit,
    EdgeError,
    ModelError,
    PassError,
    RecipeError,
    TargetError,
    ToolError,
    Unsupported,
)
from edgesdk_converters.fold import Fold
from edgesdk_converters.integer_program import Dense
from edgesdk_converters.integer_reader import program
from edgesdk_converters.integer_rules import RULES
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_converters.recipe import Recipe
from edgesdk_converters.reference import Reference
from edgesdk_targets import bundle as bundles
from edgesdk_targets.fpga import evidence
from edgesdk_targets.fpga.runner import FpgaRunner
from edgesdk_targets.report import Report
from edgesdk_targets.target import make

from ..converters.conftest import _build
from ..converters.random_graphs import random_graph
from ..converters.test_integer_reader import REFUSED
from .conftest import run_here

SIZES = (8, 6, 4)
TRAINED = sorted((Path(__file__).parents[2] / "examples" / "fashion").glob("*.onnx"))


@pytest.fixture(autouse=True, scope="module")
def empty_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    """Two dense layers with a ReLU between them."""
    return dense(SIZES)


@pytest.fixture(scope="module")
def samples() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).standard_normal((300, SIZES[0])).astype(np.float32)}


@pytest.fixture(scope="module")
def logic(model: Model, samples: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> edgesdk.Bundle:
    """The network on a small ECP5, synthesised but not routed."""
    out = tmp_path_factory.mktemp("rtl") / "net.edge"
    return edgesdk.export(
        model, device="ecp5-25k", settings={"bits": "5", "tools": "synthesis"}, data=samples, max_relative_error=0.5, out=out
    )


@pytest.fixture(scope="module")
def project(model: Model, samples: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> edgesdk.Bundle:
    """The network as a project of hls4ml."""
    out = tmp_path_factory.mktemp("hls") / "net.edge"
    return edgesdk.export(model, device="pynq-z2", settings={"flow": "hls4ml"}, data=samples, max_relative_error=0.5, out=out)


def dense(sizes: tuple[int, ...], last: str = "") -> Model:
    rng = np.random.default_rng(3)
    nodes, stored, name = [], [], "x"
    for index, (ins, outs) in enumerate(itertools.pairwise(sizes)):
        weight = rng.standard_normal((outs, ins)).astype(np.float32) / np.float32(np.sqrt(ins))
        stored += [numpy_helper.from_array(weight, f"w{index}"), numpy_helper.from_array(weight[:, 0] / 4, f"b{index}")]
        nodes.append(helper.make_node("Gemm", [name, f"w{index}", f"b{index}"], [f"g{index}"], name=f"fc{index}", transB=1))
        name = f"g{index}"
        if index < len(sizes) - 2:
            nodes.append(helper.make_node("Relu", [name], [f"r{index}"], name=f"relu{index}"))
            name = f"r{index}"
    if last:
        nodes.append(helper.make_node(last, [name], ["end"], name="last"))
        name = "end"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, d]) for n, d in (("x", sizes[0]), (name, sizes[-1])))
    graph = helper.make_graph(nodes, "net", [x], [y], stored)
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net")


def value(report: Report, name: str, segment: str = "whole") -> float:
    found = report.find(name, segment)
    assert found is not None and found.value is not None, (name, segment)
    return found.value


def answers(bundle: edgesdk.Bundle, x: np.ndarray) -> np.ndarray:
    with edgesdk.load(bundle.path) as session:
        return np.concatenate([session.run({"x": row[None]})["g1"] for row in x])


def fixed_answers(bundle: edgesdk.Bundle, x: np.ndarray) -> np.ndarray:
    """Of ONNX Runtime on the fixed-point network in the bundle."""
    reference = Reference(evidence.model_of(bundle))
    return np.concatenate([reference.run({"x": row[None]})["g1"] for row in x])


def test_verilog_agrees_at_every_level_and_its_figures_say_where_they_are_from(logic: edgesdk.Bundle) -> None:
    report = logic.report()
    for level, provenance, least in (("onnxruntime", "measured", 100), ("rtl", "simulated", 1000), ("ports", "simulated", 5)):
        found = report.find("mismatches", level)
        assert found is not None and found.value == 0 and found.provenance == provenance and (found.n or 0) >= least
    for name, provenance in (("cycles", "simulated"), ("initiation_interval", "simulated"), ("lut", "tool-reported")):
        found = report.find(name)
        assert found is not None and found.value and found.provenance == provenance
    assert value(report, "initiation_interval") == 1
    assert value(report, "dsp") == value(report, "bram") == 0
    for name in ("accuracy", "latency_ms", "relative_error"):
        found = report.find(name)
        assert found is None or found.provenance != "measured", name
    assert report.find("fmax_mhz").provenance == "unavailable"  # type: ignore[union-attr]


@pytest.mark.parametrize("flow", ["logic", "project"])
def test_running_a_bundle_runs_its_own_design_to_the_bit(flow: str, request: pytest.FixtureRequest, samples: Any) -> None:
    bundle = request.getfixturevalue(flow)
    x = np.concatenate([samples["x"][:3], np.full((1, 8), 1e6, np.float32), np.full((1, 8), -1e6, np.float32)])
    assert np.array_equal(answers(bundle, x), fixed_answers(bundle, x))
    found = edgesdk.verify(bundle.path)
    assert found.contract.status == "passed"
    compared = [row for row in found.rows if row.name in ("relative_error", "max_abs_error")]
    assert len(compared) == 3 and {row.provenance for row in compared} == {"simulated"}


def test_nan_in_an_input_is_refused_by_name(logic: edgesdk.Bundle) -> None:
    with pytest.raises(ModelError, match="input 'x' holds NaN"):
        answers(logic, np.full((1, 8), np.nan, np.float32))


def test_the_cpp_of_a_project_agrees_and_its_cost_is_an_estimate(project: edgesdk.Bundle) -> None:
    report = project.report()
    assert value(report, "mismatches", "hls4ml") == value(report, "mismatches", "onnxruntime") == 0
    for name in ("lut", "ff", "dsp", "bram", "cycles"):
        assert report.find(name).provenance == "estimated"  # type: ignore[union-attr]
    assert (project.path / "build" / "build_prj.tcl").is_file()


def test_the_same_export_gives_the_same_bytes(model: Model, samples: Any, logic: edgesdk.Bundle, tmp_path: Path) -> None:
    again = edgesdk.export(
        model, device="ecp5-25k", settings={"bits": "5", "tools": "none"}, data=samples, max_relative_error=0.5,
        out=tmp_path / "net.edge",
    )  # fmt: skip
    assert again.digest == logic.digest


def test_the_interface_says_how_the_host_makes_and_reads_codes(logic: edgesdk.Bundle, samples: Any) -> None:
    told = json.loads(logic.read("interface.json"))
    (port,) = told["inputs"]
    assert (port["name"], port["bits"], port["signed"], port["shape"]) == ("x", 5, True, [8])
    codes = np.clip(np.rint(samples["x"][:4] / 2.0 ** port["exponent"]), port["low"], port["high"]).astype(np.int64)
    program = evidence.program_of(logic)
    assert np.array_equal(program.encode({"x": samples["x"][:4]})["x"], codes)


def test_the_interface_says_how_each_tensor_is_wired_and_a_text_says_it_for_people(logic: edgesdk.Bundle) -> None:
    told = json.loads(logic.read("interface.json"))
    wired = {port["name"]: port["wiring"] for port in (*told["inputs"], *told["outputs"])}
    assert {name: (one["port"], one["port_bits"], one["beats_an_inference"]) for name, one in wired.items()} == {
        "x": ("s0", 8, 8), "g1": ("m0", 8, 4),
    }  # fmt: skip
    assert f"module {told['wiring']['module']} (".encode() in logic.read(f"build/{told['wiring']['module']}.v")
    assert "| `x` | s0 | 8 | 5 | 1 | 8 | as flattened |" in logic.read("build/WIRING.md").decode()


PINS = ["G2", *(f"A{row}" for row in (2, 4, 5, 6, 7, 8, 9, 10, 11)), *(f"B{row}" for row in (1, 6, 8, 9, 10, 11)),
        *(f"C{row}" for row in (4, 6, 7, 8, 10, 11))]  # fmt: skip
"""Of an ECP5 in the package CABGA381."""
PORTS = ["clk", "rst", *(f"{s}_{p}" for s in ("s0", "m0") for p in ("valid", "ready", *(f"data[{bit}]" for bit in range(8))))]


@pytest.fixture(scope="module")
def placed(model: Model, samples: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[edgesdk.Bundle, bytes]:
    """The same design as `logic`, exported with the pins of a board whose file is gone, and what that held."""
    folder = tmp_path_factory.mktemp("placed")
    board = folder / "board.lpf"
    board.write_text("".join(f'LOCATE COMP "{port}" SITE "{pin}";\n' for port, pin in zip(PORTS, PINS, strict=True)))
    settings, held = {"bits": "5", "tools": "none", "pins": str(board)}, board.read_bytes()
    made = edgesdk.export(
        model, device="ecp5-25k", settings=settings, data=samples, max_relative_error=0.5, out=folder / "net.edge"
    )
    board.unlink()
    return made, held


def test_a_board_s_pins_lie_in_the_bundle_and_their_path_does_not(
    placed: tuple[edgesdk.Bundle, bytes], logic: edgesdk.Bundle
) -> None:
    made, held = placed
    assert made.read("build/pins.lpf") == held
    same = {name for name in made.manifest.files if name in logic.manifest.files and made.read(name) == logic.read(name)}
    assert set(made.manifest.files) - same == {"build/pins.lpf", "build/Makefile"}
    assert b"board.lpf" not in b"".join(path.read_bytes() for path in (made.path / "manifest.json", made.path / "build/Makefile"))
    assert edgesdk.verify(made.path).contract.status == "passed"


@pytest.mark.slow
def test_build_places_the_ports_on_the_pins_in_the_bundle(placed: tuple[edgesdk.Bundle, bytes], tmp_path: Path) -> None:
    report = edgesdk.build(placed[0].path, out=tmp_path / "built")
    log = (tmp_path / "built" / "place-and-route.log").read_text()
    assert all(f"pin '{port}$tr_io' constrained to Bel" in log for port in PORTS)
    assert (tmp_path / "built" / "design.bit").stat().st_size > 1000 and (tmp_path / "built" / "WIRING.md").is_file()
    assert not any("lpf" in note for note in report.notes)


def test_pins_of_other_ports_are_refused_before_any_pass(model: Model, samples: Any, tmp_path: Path) -> None:
    said: list[str] = []
    board = tmp_path / "board.lpf"
    board.write_text('LOCATE COMP "clk" SITE "G2";')
    with pytest.raises(RecipeError, match=r"board\.lpf: it has no pin for m0_data\[0\], .* and 15 more$"):
        edgesdk.export(
            model, device="ecp5-25k", settings={"pins": str(board)}, data=samples, out=tmp_path / "n.edge", progress=said.append
        )
    assert said == ["loading the model", "checking the source against ecp5-25k"]


def test_where_icarus_alone_is_here_the_export_simulates_in_it(
    model: Model, samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("iverilog", "vvp", "sh"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    made = edgesdk.export(
        model, device="ecp5-25k", settings={"bits": "3"}, data=samples, max_relative_error=2.0, out=tmp_path / "n.edge"
    )
    for name, segment in (("cycles", "whole"), ("initiation_interval", "whole"), ("mismatches", "rtl"), ("mismatches", "ports")):
        found_row = made.report().find(name, segment)
        assert found_row is not None and found_row.provenance == "simulated" and found_row.where.startswith("Icarus")
    assert made.report().contract.status == "passed"


def test_without_its_simulator_the_contract_waits(
    model: Model, samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    made = edgesdk.export(
        model, device="ecp5-25k", settings={"bits": "5"}, data=samples, max_relative_error=0.5, out=tmp_path / "n.edge"
    )
    report = made.report()
    assert report.contract.status == "pending"
    assert "verilator" in report.find("cycles").method  # type: ignore[union-attr]
    found = report.find("lut")
    assert found is not None and found.provenance == "estimated"
    assert any("not synthesised" in note and "yosys" in note for note in report.notes)
    assert "integer reference, since verilator is not installed" in report.contract.text
    for told in (report, edgesdk.verify(made.path)):
        advised = told.find("relative_error", "device")
        assert advised is not None and "verilator is not installed" in advised.method
        assert "measure" not in advised.method and "verify" in advised.method
    assert report.find("latency_ms", "device") is None
    with pytest.raises(ToolError, match="not installed"):
        edgesdk.load(made.path)


def test_other_verilog_than_the_network_gives_is_not_simulated(logic: edgesdk.Bundle, tmp_path: Path) -> None:
    files = {name: logic.read(name) for name in logic.manifest.files}
    files["build/stage0_fc0_kernel.v"] = files["build/stage0_fc0_kernel.v"].replace(b"+", b"-", 1)
    assert files["build/stage0_fc0_kernel.v"] != logic.read("build/stage0_fc0_kernel.v")
    with pytest.raises(DeviceError, match="differs from what this one makes"):
        FpgaRunner(bundles.draft(tmp_path, logic.manifest, files))


def test_one_wrong_bit_in_a_weight_is_caught(logic: edgesdk.Bundle) -> None:
    program = evidence.program_of(logic)
    first = program.operations[0]
    assert isinstance(first, Dense)
    weight = first.weight.copy()
    weight[2, 3] ^= 1
    broken = replace(program, operations=(replace(first, weight=weight), *program.operations[1:]))
    codes = evidence.vectors(program, 200)
    with pytest.raises(ContractBroken, match="differ from the integer reference"):
        evidence.mismatches(program, codes, broken.run(codes), "rtl", "a broken design")


@pytest.mark.parametrize(
    ("settings", "device", "error", "told"),
    [
        ({"bits": "1"}, "ecp5-25k", RecipeError, "allowed: 2 to 16"),
        ({"flow": "hls4ml"}, "ecp5-25k", TargetError, "no back end"),
        ({"clock_ns": "0.1"}, "pynq-z2", RecipeError, "allowed: 0.5 to 1000"),
        ({"flow": "hdl"}, "pynq-z2", RecipeError, "flow"),
        ({"multipliers": "0"}, "pynq-z2", RecipeError, "at least 1"),
        ({"speed": "1"}, "pynq-z2", RecipeError, "has no option 'speed'"),
    ],
)
def test_settings_that_do_not_exist_are_refused(
    model: Model, samples: Any, settings: dict[str, str], device: str, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        edgesdk.export(model, device=device, settings=settings, data=samples)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("option", ["data", "train"])
def test_where_no_sample_is_left_to_calibrate_it_is_said_and_how_many_are_needed(
    model: Model, samples: Any, option: str, count: int, tmp_path: Path
) -> None:
    """One file is split: of one sample, or of one several times over, all are to check."""
    same = {"x": np.repeat(samples["x"][:1], count, axis=0)}
    with pytest.raises(PassError, match=r"no sample of .* is left to calibrate") as caught:
        data, train = (same, None) if option == "data" else (None, same)
        edgesdk.export(model, device="ecp5-25k", out=tmp_path / "n.edge", data=data, train=train)
    assert "2 or more different samples" in caught.value.hint and "--train and --data apart" in caught.value.hint


def test_an_operator_without_an_exact_form_is_refused_by_name(samples: Any, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="last") as caught:
        edgesdk.export(dense(SIZES, "LogSoftmax"), device="ecp5-25k", data=samples, out=tmp_path / "n.edge")
    assert "LogSoftmax" in caught.value.message
    assert not (tmp_path / "n.edge").exists()


@pytest.mark.parametrize(
    ("last", "settings", "error", "told"),
    [
        ("LogSoftmax", {}, Unsupported, r"node 'last' \(LogSoftmax\)"),
        ("", {"flow": "hls4ml", "reuse_factors": "fc7=4"}, RecipeError, "'fc7', which is no node of .* are fc0, fc1$"),
    ],
)
def test_what_the_source_tells_already_is_refused_before_any_pass(
    last: str, settings: dict[str, str], error: type[Exception], told: str, samples: Any, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(error, match=told):
        edgesdk.export(
            dense(SIZES, last), device="pynq-z2", settings=settings, data=samples, out=tmp_path / "n.edge", progress=said.append
        )
    assert said == ["loading the model", "checking the source against pynq-z2"]


def test_a_head_is_refused_when_it_is_cut_and_before_it_is_quantised(samples: Any, tmp_path: Path) -> None:
    """What is behind the cut runs elsewhere: of the whole network nothing can be said."""
    said: list[str] = []
    proto = dense(SIZES).copy_proto()
    proto.graph.node[1].op_type = "LogSoftmax"
    with pytest.raises(Unsupported, match=r"'relu0' \(LogSoftmax\)"):
        edgesdk.export(
            Model.from_proto(proto, "net"), device="ecp5-25k", split="r0", data=samples, out=tmp_path / "n.edge",
            progress=said.append,
        )  # fmt: skip
    assert "pass fold" in said and "pass quantize" not in said


@pytest.mark.parametrize("row", REFUSED, ids=[row[0].__name__ for row in REFUSED])
def test_what_is_refused_before_any_pass_is_refused_in_the_same_words_behind_them(row: Any) -> None:
    model, no_rule = row[0](_build), row[2] not in RULES and "Linear" not in row[2]
    with pytest.raises(Unsupported) as behind:
        program(model)
    try:
        make(None, "pynq-z2").check_source(model, ())
    except Unsupported as error:
        assert error.line() == behind.value.line()
        assert no_rule or row[0].__name__ == "_foreign"
    else:
        assert not no_rule


@pytest.mark.parametrize("seed", [0, 1, 4, 6, 20, 27, 35, 48])
def test_no_network_is_refused_before_the_passes_that_goes_through_them(seed: int) -> None:
    model, steps = random_graph(seed), (Fold(), Quantize(flavour="fixed"))
    try:
        make(None, "pynq-z2").check_source(model, steps)
    except Unsupported as error:
        assert error.operator not in RULES
        with pytest.raises(EdgeError):
            program(Recipe(steps).run(model, Given(model, replace(synthetic(model, 2), synthetic=False))))
    else:
        assert seed == 1


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_the_trained_examples_pass_the_check_of_their_source(path: Path) -> None:
    make(None, "ecp5-85k").check_source(Model.load(path), (Fold(), Quantize(flavour="fixed")))


def test_a_network_that_is_too_large_says_what_it_needs_and_what_there_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((300, 64)).astype(np.float32)}
    with pytest.raises(DoesNotFit, match="need") as caught:
        edgesdk.export(
            dense((64, 64, 32)), device="ecp5-25k", data=data, max_relative_error=1.0, out=tmp_path / "n.edge",
            settings={"form": "folded", "multipliers": "64"},
        )  # fmt: skip
    assert caught.value.need > caught.value.have
    assert not (tmp_path / "n.edge").exists()


@pytest.mark.parametrize("backend", ["oneapi", "libero"])
def test_a_back_end_that_only_its_vendor_compiles_gets_its_project_and_the_contract_waits(
    backend: str, model: Model, samples: Any, tmp_path: Path
) -> None:
    settings = {"flow": "hls4ml", "backend": backend}
    made = edgesdk.export(
        model, device="pynq-z2", settings=settings, data=samples, max_relative_error=0.5, out=tmp_path / "n.edge"
    )
    report = made.report()
    assert report.contract.status == "pending"
    found = report.find("mismatches", "hls4ml")
    assert found is not None and found.provenance == "unavailable" and "headers" in found.method
    assert any(name.startswith("build/") and name.endswith("network.cpp") for name in made.manifest.files)
    assert any("hls4ml's default" in note for note in report.notes) and "hls4ml's default" in made.manifest.plan[0]["note"]
    assert report.find("lut").provenance == "unavailable"  # type: ignore[union-attr]


def test_a_simulator_that_fails_is_an_error_and_no_missing_one(
    model: Model, samples: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the integers themselves would be held against the contract in the place of the design."""
    for name in ("verilator", "g++"):
        fake = tmp_path / "bin" / name
        fake.parent.mkdir(exist_ok=True)
        fake.write_text("#!/bin/sh\necho broken >&2; exit 1\n")
        fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for settings, device in (({"bits": "5"}, "ecp5-25k"), ({"flow": "hls4ml"}, "pynq-z2")):
        with pytest.raises(ToolError, match="ended with 1"):
            edgesdk.export(model, device=device, settings=settings, data=samples, max_relative_error=0.5, out=tmp_path / "n.edge")
        assert not (tmp_path / "n.edge").exists()


def test_a_broken_contract_advises_what_logic_has(model: Model, samples: Any, tmp_path: Path) -> None:
    settings = {"bits": "2", "tools": "none"}
    with pytest.raises(ContractBroken) as caught:
        edgesdk.export(
            model, device="ecp5-25k", settings=settings, data=samples, max_relative_error=1e-4, out=tmp_path / "n.edge"
        )
    assert all(told in caught.value.hint for told in ("--set bits=N", "--set quantize.widths=", "--qat"))
    assert "precision" not in caught.value.hint


def test_where_there_is_one_precision_no_note_tells_of_a_choice(logic: edgesdk.Bundle) -> None:
    assert not any("speeds are not known" in note for note in logic.report().notes)


def test_build_into_a_file_says_what_is_there(logic: edgesdk.Bundle, tmp_path: Path) -> None:
    there = tmp_path / "one.npz"
    there.write_bytes(b"kept")
    with pytest.raises(BundleError, match="is there already, and is a file") as caught:
        edgesdk.build(logic.path, out=there)
    assert "folder" in caught.value.hint and there.read_bytes() == b"kept"


def test_a_simulators_time_is_never_a_latency(logic: edgesdk.Bundle) -> None:
    with pytest.raises(DeviceError, match="a simulator's time is no latency"):
        edgesdk.measure(logic.path)


def test_build_without_the_vendors_tool_leaves_a_project_and_says_what_to_install(project: edgesdk.Bundle) -> None:
    with pytest.raises(ToolError, match="is not on the path") as caught:
        edgesdk.build(project.path)
    folder = project.path.with_name("net.build")
    assert "install" in caught.value.hint and str(folder) in caught.value.message
    assert (folder / "build_prj.tcl").read_bytes() == project.read("build/build_prj.tcl")


def test_build_runs_the_free_tools_again(logic: edgesdk.Bundle, tmp_path: Path) -> None:
    report = edgesdk.build(logic.path, out=tmp_path / "built")
    assert value(report, "lut") > 0
    assert value(report, "fmax_mhz") > 10
    assert (tmp_path / "built" / "design.bit").stat().st_size > 1000
    assert report.find("fmax_mhz").provenance == "tool-reported"  # type: ignore[union-attr]


def test_the_makefile_in_the_bundle_builds_without_edgesdk(logic: edgesdk.Bundle, tmp_path: Path) -> None:
    import subprocess

    shutil.copytree(logic.path / "build", tmp_path / "build")
    subprocess.run(["make", "-C", str(tmp_path / "build"), "cells.json"], check=True, capture_output=True, env=os.environ)
    assert json.loads((tmp_path / "build" / "cells.json").read_text())


def test_the_network_in_a_bundle_is_estimated_as_its_report_says(project: edgesdk.Bundle, logic: edgesdk.Bundle) -> None:
    report = project.report()
    found = edgesdk.estimate(project.path / "model.onnx", device="pynq-z2", settings={"flow": "hls4ml", "bits": "16"})
    for name in ("lut", "ff", "dsp", "bram", "cycles", "initiation_interval", "fmax_mhz"):
        row, told = found.find(name), report.find(name)
        assert row is not None and told is not None and (row.value, row.interval) == (told.value, told.interval), name
        assert row.method == f"the model's own integers; {told.method}"
    wider = edgesdk.estimate(project.path / "model.onnx", device="zcu102", settings={"flow": "rtl"})
    assert value(wider, "lut") > value(edgesdk.estimate(logic.path / "model.onnx", device="zcu102"), "lut"), "8 bits, not 5"


def test_a_line_of_text_is_estimated_in_no_time_and_only_for_logic(tmp_path: Path) -> None:
    settings = {"flow": "hls4ml", "reuse_factor": "1024", "strategy": "resource", "clock_ns": "5"}
    report = edgesdk.estimate("dense:80-24-120@6bit", device="alveo-u250", settings=settings)
    assert value(report, "cycles") == 1925
    for name in ("lut", "ff", "cycles"):
        found = report.find(name)
        assert found is not None and found.interval is not None and found.interval.level == 0.8 and not found.extrapolated
    with pytest.raises(TargetError, match="is for fpga"):
        edgesdk.estimate("dense:80-24-120@6bit", device="raspberry-pi-4")
    done = run_here("estimate dense:80-24@x --device alveo-u250 --set flow=hls4ml", tmp_path)
    assert done.code == 2 and "dense:16-64-32-5@8bit" in done.err
