"""Options of the flow hls4ml: reuse factors of single nodes from text to the project."""

from __future__ import annotations

import pytest

from edgesdk_converters.errors import RecipeError, TargetError
from edgesdk_targets.figure import Figure
from edgesdk_targets.fpga import flow_hls4ml
from edgesdk_targets.fpga.dense_spec import parse
from edgesdk_targets.fpga.target import Fpga
from edgesdk_targets.target import make

from .integer_nets import dense_net


def target(**settings: str) -> Fpga:
    made = make(None, "pynq-z2", {"flow": "hls4ml", "strategy": "resource"} | settings)
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
    with pytest.raises(TargetError, match="expected NODE=FACTOR"):
        target(reuse_factors=text)


def test_two_reuse_factors_for_one_node_are_refused() -> None:
    with pytest.raises(TargetError, match="two for 'fc1': 16 and 32"):
        target(reuse_factors="fc1=16,fc1=32")


def test_reuse_factors_without_hls4ml_are_refused() -> None:
    with pytest.raises(TargetError, match="flow is rtl"):
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
