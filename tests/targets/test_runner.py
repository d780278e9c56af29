"""The table of runners: names lead to classes, unknown ones are refused with the known ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import edgesdk_targets.runner as runners
from edgesdk_converters import plugins
from edgesdk_converters.errors import DeviceError
from edgesdk_targets.bundle import Bundle, Runtime, draft


def with_runtime(bundle: Bundle, name: str) -> Bundle:
    files = {file: bundle.read(file) for file in bundle.manifest.files}
    return draft(Path("x"), replace(bundle.manifest, runtime=Runtime(name, "model.onnx"), files={}, digest=""), files)


def test_every_runner_in_the_table_has_the_methods_of_the_protocol() -> None:
    methods = [name for name in vars(runners.Runner) if not name.startswith("_")]
    assert sorted(methods) == ["close", "count_nodes", "run", "run_into"]
    for name in runners.RUNNERS:
        cls = plugins.find(runners.RUNNERS, runners.GROUP, name, DeviceError)
        assert all(callable(getattr(cls, method)) for method in methods)


def test_an_unknown_runtime_lists_the_known_ones(small_bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"unknown runner 'tflite'; known: onnxruntime"):
        runners.load(with_runtime(small_bundle, "tflite"))


def test_facts_read_as_one_line() -> None:
    facts = runners.RunnerFacts("onnxruntime", "1.32.0", ("A", "B"))
    assert str(facts) == "onnxruntime 1.32.0, A, B"
    assert str(runners.RunnerFacts("verilator", "5.006", ("verilator",))) == "verilator 5.006"
    instead = runners.RunnerFacts("reference", "", ("reference",), fallback=True, because="verilator is not installed")
    assert str(instead) == "reference, since verilator is not installed"


def test_a_loaded_bundle_runs_and_closes(small_bundle: Bundle) -> None:
    loaded = runners.load(small_bundle)
    assert loaded.facts.runtime == "onnxruntime"
    loaded.close()
