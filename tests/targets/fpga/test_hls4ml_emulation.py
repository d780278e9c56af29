from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from edgesdk_converters import integer_reader
from edgesdk_converters.calibration import synthetic
from edgesdk_converters.errors import DeviceError, ToolError, Unsupported
from edgesdk_converters.integer_program import Dense, IntegerProgram, Integers, Round, Rounding, rounded
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.quantize import Quantize
from edgesdk_targets.fpga import hls4ml_emulation, hls4ml_flow
from edgesdk_targets.fpga.hls4ml_backends import BACKENDS, BackendName
from edgesdk_targets.fpga.hls4ml_flow import Options

from .integer_nets import Net, clipped_net, conv_net, dense_net, moved_net

VECTORS = 1000
NETWORKS = Path(__file__).parents[3] / "examples" / "fashion"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of their own, so that everything is compiled at least once and nothing from before is trusted."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def vectors(program: IntegerProgram, count: int = VECTORS) -> dict[str, Integers]:
    """Random codes; the first two vectors are all lowest and all highest."""
    rng, codes = np.random.default_rng(11), {}
    for name in program.inputs:
        tensor = program.tensors[name]
        codes[name] = rng.integers(tensor.low, tensor.high + 1, (count, *tensor.shape))
        codes[name][0], codes[name][1] = tensor.low, tensor.high
    return codes


def mismatches(program: IntegerProgram, options: Options) -> int:
    codes = vectors(program)
    wanted, found = program.run(codes), hls4ml_emulation.emulate(hls4ml_flow.project(program, options), codes)
    assert set(found) == set(wanted)
    assert all(len(np.unique(one)) > 6 for one in wanted.values()), "outputs that hardly vary prove nothing"
    return sum(int((found[name] != wanted[name]).sum()) for name in wanted)


def ties_and_saturations(program: IntegerProgram) -> tuple[int, int]:
    """How many codes lie exactly between two after a rounding, and how many beyond its bounds."""
    known, ties, beyond = program.run(vectors(program), keep=True), 0, 0
    for op in program.operations:
        if isinstance(op, Round):
            source, result = program.tensors[op.source], program.tensors[op.result]
            shift, codes = result.exponent - source.exponent, known[op.source]
            up, even = (rounded(codes, shift, source.divisor, kind) for kind in ("half_up", "half_even"))
            ties += int((up != even).sum())
            beyond += int(((up < result.low) | (up > result.high)).sum())
    return ties, beyond


@pytest.mark.parametrize("program", [dense_net((16, 64, 32, 5), 6, "half_even"), conv_net(), clipped_net()], ids=lambda p: "")
def test_the_vectors_hit_ties_and_saturations(program: IntegerProgram) -> None:
    ties, beyond = ties_and_saturations(program)
    assert ties > 100
    assert beyond > 300


@pytest.mark.parametrize(
    ("program", "options"),
    [
        pytest.param(dense_net((16, 64, 32, 5), 6, "half_even"), Options(), id="dense"),
        pytest.param(conv_net(), Options(), id="conv"),
        pytest.param(clipped_net(), Options(), id="clips"),
        pytest.param(
            moved_net(),
            Options(io_type="io_stream", strategy="resource", reuse_factor=3, name="folded"),
            id="moves-stream-resource",
        ),
        pytest.param(dense_net((12, 9, 4), 8, "half_up"), Options(backend="quartus"), id="quartus"),
    ],
)
def test_the_compiled_project_equals_the_integers(program: IntegerProgram, options: Options, cache: Path) -> None:
    assert mismatches(program, options) == 0


def test_a_flipped_weight_bit_is_caught(cache: Path) -> None:
    program = dense_net((6, 4, 3), 4, "truncate")
    first = program.operations[0]
    assert isinstance(first, Dense)
    weight = first.weight.copy()
    weight[1, 2] ^= 1
    flipped = replace(program, operations=(replace(first, weight=weight), *program.operations[1:]))
    codes = vectors(program)
    found = hls4ml_emulation.emulate(hls4ml_flow.project(flipped, Options()), codes)
    (name,) = program.outputs
    assert (found[name] == flipped.run(codes)[name]).all()
    assert (found[name] != program.run(codes)[name]).any()
    told: list[str] = []
    hls4ml_emulation.compiled(hls4ml_flow.project(flipped, Options()), told.append)
    assert told == [], "it was compiled a second time"


def test_what_the_host_does_behind_the_network_is_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(5)
    last = net.round(net.dense(net.input((6,)), 4), signed=True)
    program = net.program(net.argmax(last))
    project = hls4ml_flow.project(program, Options())
    codes = vectors(program, 50)
    device, _ = hls4ml_flow.divided(program, BACKENDS["vitis"])
    monkeypatch.setattr(hls4ml_emulation, "compiled", lambda *_: Path("unused"))
    monkeypatch.setattr(hls4ml_emulation, "_run", lambda *_: device.run(codes))
    assert device.outputs == (last,)
    assert project.host is not None
    assert project.host.operations == (program.operations[-1],)
    (name,) = program.outputs
    assert (hls4ml_emulation.emulate(project, codes)[name] == program.run(codes)[name]).all()


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    project = hls4ml_flow.project(dense_net((4, 3, 2), 4, "half_even"), Options())
    with pytest.raises(ToolError, match=r"g\+\+") as caught:
        hls4ml_emulation.compiled(project)
    assert "apt-get install g++" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "edgesdk").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DeviceError, match="cannot be made"):
        hls4ml_emulation.compiled(hls4ml_flow.project(dense_net((4, 3, 2), 4, "half_even"), Options()))


def test_code_that_does_not_compile_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    project = hls4ml_flow.project(dense_net((4, 3, 2), 4, "half_even"), Options())
    broken = replace(project, files={**project.files, "firmware/network.cpp": b"#error broken on purpose\n"})
    with pytest.raises(ToolError, match="broken on purpose"):
        hls4ml_emulation.compiled(broken)
    assert list((tmp_path / "edgesdk" / "hls4ml").iterdir()) == []


@pytest.mark.parametrize("backend", ["oneapi", "libero"])
def test_back_ends_that_need_the_vendors_headers_say_so(backend: BackendName) -> None:
    project = hls4ml_flow.project(dense_net((4, 3, 2), 4, "half_even"), Options(backend=backend))
    with pytest.raises(Unsupported, match=r"headers of its C\+\+ come only with"):
        hls4ml_emulation.compiled(project)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 6, 8, 16])
@pytest.mark.parametrize("rounding", get_args(Rounding))
def test_dense_networks_of_all_widths_and_roundings_are_exact(bits: int, rounding: Rounding, cache: Path) -> None:
    assert mismatches(dense_net((16, 64, 32, 5), bits, rounding), Options()) == 0


@pytest.mark.slow
def test_sums_far_wider_than_a_float_come_out_whole(cache: Path) -> None:
    net = Net(4, 16)
    result = net.dense(net.round(net.dense(net.input((16,), 20), 12), 22, signed=True), 4)
    assert net.tensors[result].bits > 38
    assert mismatches(net.program(result), Options()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("io_type", ["io_parallel", "io_stream"])
@pytest.mark.parametrize("strategy", ["latency", "resource"])
@pytest.mark.parametrize("make", [conv_net, clipped_net, moved_net])
def test_all_networks_are_exact_in_either_io_and_strategy(make: Any, io_type: Any, strategy: Any, cache: Path) -> None:
    assert mismatches(make(), Options(io_type=io_type, strategy=strategy, reuse_factor=4)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8, 12])
@pytest.mark.parametrize("rounding", get_args(Rounding))
def test_a_convolutional_network_is_exact_at_other_widths(bits: int, rounding: Rounding, cache: Path) -> None:
    assert mismatches(conv_net(bits, rounding), Options()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("io_type", ["io_parallel", "io_stream"])
@pytest.mark.parametrize("backend", ["vivado", "vivadoaccelerator", "catapult", "quartus"])
def test_other_back_ends_compile_and_are_exact(backend: Any, io_type: Any, cache: Path) -> None:
    net = Net(7)
    first = net.round(net.relu(net.conv(net.input((2, 6, 7)), 4, (3, 3), pads=(1, 0, 1, 2))))
    means = net.round(net.mean(net.pool(first, (2, 2)), (2, 1)), drop=1, rounding="half_up")
    program = net.program(net.round(net.dense(net.flatten(means), 5), signed=True, low=-31))
    assert mismatches(program, Options(backend=backend, io_type=io_type)) == 0


@pytest.mark.slow
def test_a_trained_network_read_from_onnx_is_exact(cache: Path) -> None:
    model = Model.load(NETWORKS / "fashion_cnn.onnx")
    samples = replace(synthetic(model, 8), synthetic=False)
    program = integer_reader.program(Quantize(flavour="fixed", bits=6)(model, Given(model, samples)))
    options = Options(io_type="io_stream", strategy="resource", reuse_factor=64)
    assert mismatches(program, options) == 0
