"""Running a bundle of logic: what is missing is said when it is loaded, and nothing is built before inputs come."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk_converters.errors import MissingTool, ModelError, ToolError
from edgesdk_converters.model import Model
from edgesdk_targets.bundle import Bundle
from edgesdk_targets.fpga import evidence
from edgesdk_targets.fpga.runner import REFERENCE, FpgaRunner
from edgesdk_targets.runner import RunOptions

VERILATOR, ICARUS = shutil.which("verilator"), shutil.which("iverilog")
Programs = Callable[[str], Path]


@pytest.fixture(scope="module")
def logic(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A dense layer as logic, made where no simulator is."""
    weight = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 4), ("y", 3)))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    graph = helper.make_graph([node], "net", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net")
    data = {"x": np.random.default_rng(5).standard_normal((100, 4)).astype(np.float32)}
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        settings = {"tools": "none", "bits": "4"}
        return edgesdk.export(
            model, device="ecp5-25k", settings=settings, data=data, max_relative_error=0.9, out=folder / "n.edge"
        )


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """Makes a program of that name the only one beside the shell's; each call of it is a line of the file that is returned."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    (folder / "sh").symlink_to(str(shutil.which("sh")))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def made(name: str) -> Path:
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncase "$1" in --version|-V) echo 5.1 ;; *) exit 1 ;; esac\n')
        (folder / name).chmod(0o755)
        return calls

    return made


def built(calls: Path) -> list[str]:
    """The calls that ask for more than a version."""
    return [line for line in calls.read_text().splitlines() if line not in ("--version", "-V")] if calls.exists() else []


def test_nothing_is_built_before_inputs_come_that_the_network_takes(logic: Bundle, programs: Programs) -> None:
    calls = programs("verilator")
    with edgesdk.load(logic.path) as session:
        for wrong, told in (("z", "unknown 'z'"), ("x", "shape")):
            with pytest.raises(ModelError, match=told):
                session.run({wrong: np.zeros((1, 4 if wrong == "z" else 5), np.float32)})
        assert built(calls) == [], "a simulator was built for inputs that are refused"
        with pytest.raises(ToolError, match="verilator: ended with 1"):
            session.run({"x": np.zeros((1, 4), np.float32)})
    (call,) = built(calls)
    assert "--build" in call


@pytest.mark.parametrize("only", ["", "iverilog"])
def test_what_is_missing_is_said_when_it_is_loaded_with_all_that_helps(only: str, logic: Bundle, programs: Programs) -> None:
    missing = "verilator"
    if only:
        programs(only)
        missing = "vvp"
    with pytest.raises(MissingTool, match="is not installed") as caught:
        edgesdk.load(logic.path)
    assert caught.value.tool == missing and "--allow-fallback" in caught.value.hint and REFERENCE in caught.value.hint
    assert "iverilog" in caught.value.hint
    with pytest.warns(RuntimeWarning, match=f"{missing} is not installed"):
        edgesdk.load(logic.path, allow_fallback=True).close()


def test_the_fallback_computes_the_integers_and_says_why_it_does(logic: Bundle, programs: Programs) -> None:
    program = evidence.program_of(logic)
    runner = FpgaRunner(logic, RunOptions(allow_fallback=True))
    facts = runner.facts
    assert (facts.runtime, facts.fallback, facts.simulated) == (REFERENCE, True, True)
    assert facts.because == "verilator is not installed"
    x = np.linspace(-2, 2, 4, dtype=np.float32)[None]
    (found,) = runner.run({"x": x})
    (wanted,) = program.decode(program.run(program.encode({"x": x}))).values()
    np.testing.assert_array_equal(found, wanted)
    runner.close()


@pytest.mark.skipif(ICARUS is None, reason="simulates with Icarus")
def test_where_only_icarus_is_it_gives_the_same_answers(logic: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("iverilog", "vvp", "sh"):
        (folder / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(folder))
    feeds = [{"x": row[None]} for row in np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)]
    runner, reference = FpgaRunner(logic), evidence.program_of(logic)
    assert runner.facts.runtime == "iverilog" and not runner.facts.fallback
    for feed, (found,) in zip(feeds, runner.run_many(feeds), strict=True):
        (wanted,) = reference.decode(reference.run(reference.encode(feed))).values()
        np.testing.assert_array_equal(found, wanted)
    runner.close()
