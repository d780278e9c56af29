"""Options of the flow hls4ml: reuse factors of single nodes from text to the project."""

from __future__ import annotations

import pytest

from edgesdk_converters.errors import RecipeError
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import flow_hls4ml
from edgesdk_targets.fpga.dense_spec import parse
from edgesdk_targets.fpga.target import Fpga
from edgesdk_targets.target import make

from .integer_nets import dense_net


def target(device: str = "pynq-z2", **settings: str) -> Fpga:
    made = make(None, device, {"flow": "hls4ml", "strategy": "resource"} | settings)
    assert isinstance(made, Fpga)
    return made


def total(rows: tuple[Figure, ...], name: str) -> float:
    return float(next(row.value for row in rows if row.name == name and row.layer is None) or 0)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("fc1=16", {"fc1": 16}),
        ("/net/fc1/Gemm=16,/net/fc2/Gemm=32,", {"/net/fc1/Gemm": 16, "/net/fc2/Gemm": 32}),
        ("a,b=3,c=4", {"a,b": 3, "c": 4}),
    ],
)
def test_reuse_factors_by_node_from_text(text: str, found: dict[str, int]) -> None:
    assert flow_hls4ml.reuse_factors(text) == found


@pytest.mark.parametrize("text", ["fc1", "fc1=", "fc1=0", "fc1=-4", "fc1=1.5", "fc1=x", "=16", "fc1=1,fc2", "fc1=9999999999"])
def test_text_that_is_no_reuse_factor_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected NODE=FACTOR"):
        target(reuse_factors=text)


def test_two_reuse_factors_for_one_node_are_refused() -> None:
    with pytest.raises(RecipeError, match="two for 'fc1': 16 and 32"):
        target(reuse_factors="fc1=16,fc1=32")


def test_reuse_factors_without_hls4ml_are_refused() -> None:
    with pytest.raises(RecipeError, match="flow is rtl"):
        target(flow="rtl", reuse_factors="fc1=16")


def test_estimates_use_the_reuse_factors_of_single_layers() -> None:
    layers = parse("dense:16-64-5@8bit")
    mixed = flow_hls4ml.of_fixed(layers, target(reuse_factor="64", reuse_factors="dense_1=16"))
    assert total(mixed, "dsp") == 1024 / 16 + 320 / 64
    assert total(flow_hls4ml.of_fixed(layers, target(reuse_factor="64")), "dsp") == 1024 / 64 + 320 / 64
    with pytest.raises(RecipeError, match="dense_1, dense_2"):
        flow_hls4ml.of_fixed(layers, target(reuse_factors="fc=16"))


def test_projects_have_the_reuse_factors_of_single_nodes_and_the_bundle_tells_them() -> None:
    program = dense_net((16, 12, 5), 6, "half_even")
    dtypes = dict.fromkeys(program.outputs, "float32")
    first, second = (operation.node for operation in program.operations if hasattr(operation, "weight"))
    made = flow_hls4ml.compiled(program, dtypes, target(reuse_factor="4", reuse_factors=f"{second}=12"))
    assert made.runtime.config["reuse_factors"] == f"{second}=12"
    parameters = made.files["build/firmware/parameters.h"].decode()
    assert parameters.count("reuse_factor = 4;") == 1 and parameters.count("reuse_factor = 12;") == 1
    plain = flow_hls4ml.compiled(program, dtypes, target(reuse_factor="4"))
    assert "reuse_factors" not in plain.runtime.config
    with pytest.raises(RecipeError, match="no node of the network"):
        flow_hls4ml.compiled(program, dtypes, target(reuse_factors="nowhere=4"))
    assert first != second


@pytest.mark.parametrize(
    ("backend", "device", "part"),
    [
        ("quartus", "pynq-z2", "Arria10"),
        ("oneapi", "zcu102", "Agilex7"),
        ("libero", "alveo-u250", "MPF300"),
        ("catapult", "pynq-z2", "xc7z020clg400-1"),
        ("vivado", "zcu102", "xczu9eg-ffvb1156-2-e"),
        ("vivadoaccelerator", "zcu102", "xczu9eg-ffvb1156-2-e"),
    ],
)
def test_a_project_has_a_part_that_its_tools_build_for(backend: str, device: str, part: str) -> None:
    program = dense_net((6, 5, 4), 6, "half_even")
    made = flow_hls4ml.compiled(program, dict.fromkeys(program.outputs, "float32"), target(backend=backend, device=device))
    config = made.files["build/hls4ml_config.yml"].decode()
    assert f"Part: {part}\n" in config
    told = f"part {part} is hls4ml's default for {backend}"
    is_foreign = not part.startswith("xc")
    assert any(note.startswith(told) for note in made.notes) == is_foreign
    assert str(made.plan[0].get("note", "")).startswith(told) == is_foreign
    if is_foreign:
        assert made.runtime.config["part"] == part
        boards = target(device=device).device.get("part", str)
        assert boards and not any(boards.encode() in data for data in made.files.values())


def test_estimates_for_other_tools_than_those_of_the_results_are_extrapolated() -> None:
    layers, inside = parse("dense:32-32-32@8bit"), {"device": "alveo-u250", "reuse_factor": "1024"}
    plain = flow_hls4ml.of_fixed(layers, target(**inside))
    assert {row.name for row in plain if row.extrapolated} == {"initiation_interval"}, "of which there are no results at all"
    for backend in ("vivado", "vivadoaccelerator", "catapult"):
        rows = flow_hls4ml.of_fixed(layers, target(backend=backend, **inside))
        assert all(row.extrapolated for row in rows) and len(rows) == len(plain)


def test_estimates_say_that_they_are_of_vitis_and_none_is_made_for_another_vendors_chip() -> None:
    layers = parse("dense:16-8-5@8bit")
    plain = flow_hls4ml.of_fixed(layers, target())
    assert not any("for vitis, not" in row.method for row in plain)
    for backend in ("vivado", "vivadoaccelerator", "catapult"):
        rows = flow_hls4ml.of_fixed(layers, target(backend=backend))
        assert [row.value for row in rows] == [row.value for row in plain]
        assert all(row.method.startswith(f"estimated for vitis, not for {backend}: ") for row in rows)
    for backend in ("quartus", "oneapi", "libero"):
        rows = flow_hls4ml.of_fixed(layers, target(backend=backend))
        assert {row.name for row in rows} >= {"lut", "ff", "dsp", "bram", "cycles"}
        assert all(row.provenance == "unavailable" and "of Vitis" in row.method for row in rows)


def test_what_an_estimate_in_float_assumes_is_told_with_its_options() -> None:
    told = flow_hls4ml.assumed(target(bits="6"))
    assert told.startswith("assumed: weights of 6 bits (bits), activations of 6 (activation_bits), sums as wide as they get")
    assert told.endswith("fixed<16,6>, is --set activation_bits=16 --set accumulator_bits=16")
    told = flow_hls4ml.assumed(target(bits="6", activation_bits="16", accumulator_bits="20"))
    assert "activations of 16 (activation_bits), sums of 20 (accumulator_bits)" in told and "refuses the last two" in told
