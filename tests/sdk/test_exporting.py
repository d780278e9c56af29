"""What an export writes down of itself: its size, time and memory cover what the target's tools make and take as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk import exporting, trial
from edgesdk_converters.errors import TargetError
from edgesdk_converters.model import Model
from edgesdk_targets import measure
from edgesdk_targets.bundle import Bundle, Runtime
from edgesdk_targets.device import profile
from edgesdk_targets.figure import Figure, counted
from edgesdk_targets.report import Report
from edgesdk_targets.runner import silent
from edgesdk_targets.server import Server
from edgesdk_targets.target import Compiled, Completed, Segment, Target

HERE = profile("this-machine")
TOOLS_S, PEAK_BYTES = 5000.0, 10**15
LATER = SimpleNamespace(seconds=0.0, peak_bytes=0)
"""What the tools add to the clock and to the peak of the process."""
SOURCES = {"build/top.v": b"module top; endmodule\n", "build/weights.hex": b"00ff\n" * 30, "build/Makefile": b"all:\n"}
SOURCE_BYTES = len(SOURCES["build/top.v"]) + len(SOURCES["build/weights.hex"])
IMAGE, IMAGE_BYTES = "build/board.bit", 5000


@dataclass(frozen=True)
class Board(Server):
    """A target with sources beside what is run here, and a tool that takes hours and may make an image of them."""

    image: bool = True

    def compile(self, segment: Segment) -> Compiled:
        made = super().compile(segment)
        return replace(made, files={**made.files, **SOURCES})

    def artefact(self, names: Collection[str], runtime: Runtime) -> tuple[str, ...]:
        return (IMAGE,) if IMAGE in names else tuple(sorted(name for name in names if name.endswith((".v", ".hex"))))

    def complete(self, bundle: Bundle, progress: Callable[[str], None] = silent) -> Completed:
        LATER.seconds, LATER.peak_bytes = TOOLS_S, PEAK_BYTES
        return Completed({IMAGE: bytes(IMAGE_BYTES)} if self.image else {}, (counted("lut", 7, "by hand"),))


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Report]:
    """The report of a small classifier's export to the board, whose tools move the clock and the process's peak."""
    monkeypatch.setattr(LATER, "seconds", 0.0)
    monkeypatch.setattr(LATER, "peak_bytes", 0)
    now, peak = time.perf_counter, measure.peak_memory_bytes
    clock = SimpleNamespace(perf_counter=lambda: now() + LATER.seconds)
    for module in (exporting, trial):
        monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(module, "peak_memory_bytes", lambda: peak() + LATER.peak_bytes, raising=False)

    def exported(target: Target) -> Report:
        monkeypatch.setattr(exporting, "make", lambda *_: target)
        data: dict[str, NDArray[Any]] = {"x": np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)}
        data["labels"] = np.arange(200) % 3
        return edgesdk.export(classifier(), target="server", data=data, out=tmp_path / "net.edge", max_drop=50).report()

    return exported


def classifier() -> Model:
    weight = np.random.default_rng(1).standard_normal((6, 3)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 6), ("y", 3)))
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    graph = helper.make_graph([node], "net", [x], [y], [numpy_helper.from_array(weight, "w")])
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net")


def row(report: Report, name: str) -> Figure:
    (found,) = (one for one in report.rows if one.name == name)
    return found


def test_time_and_memory_of_an_export_cover_what_the_targets_tools_took(export: Callable[..., Report]) -> None:
    report = export(Board(HERE))
    seconds, peak = row(report, "export_s"), row(report, "export_peak_memory_bytes")
    assert seconds.value is not None and TOOLS_S < seconds.value < TOOLS_S + 600
    assert peak.value is not None and peak.value > PEAK_BYTES
    assert (seconds.provenance, seconds.n) == ("measured", 1)
    assert "the target's tools" in seconds.method and "without writing the bundle" in seconds.method
    assert "without the tools" in peak.method


def test_the_size_of_an_artefact_is_that_of_the_files_that_the_target_says_it_is(export: Callable[..., Report]) -> None:
    size = row(export(Board(HERE, image=False)), "artifact_bytes")
    assert (size.value, size.method) == (SOURCE_BYTES, "size of 2 files: *.hex, *.v")


def test_what_the_tools_make_of_the_sources_is_the_artefact_once_it_is_there(export: Callable[..., Report]) -> None:
    report = export(Board(HERE))
    size = row(report, "artifact_bytes")
    assert (size.value, size.method, size.where) == (IMAGE_BYTES, f"size of {IMAGE}", "artifact")
    had = row(report, "source_bytes").value
    assert had is not None and row(report, "accuracy").value == row(report, "source_accuracy").value
    assert row(report, "size_ratio_times_retention").value == pytest.approx(had / IMAGE_BYTES)


def test_as_a_rule_the_artefact_is_what_the_runtime_loads(export: Callable[..., Report], tmp_path: Path) -> None:
    size = row(export(Server(HERE)), "artifact_bytes")
    assert (size.value, size.method) == ((tmp_path / "net.edge" / "model.onnx").stat().st_size, "size of model.onnx")


@pytest.mark.parametrize("names", [(), ("build/top.v", "no.bit")])
def test_an_artefact_that_is_not_there_is_the_targets_error(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Board, "artefact", lambda *_: names)
    with pytest.raises(TargetError, match="goes onto the device") as caught:
        trial.artefact_size(Board(HERE), SOURCES, Runtime("onnxruntime", "model.onnx"))
    assert "has to name files of the bundle: build/" in caught.value.hint
