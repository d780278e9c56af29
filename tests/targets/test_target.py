"""What every target must hold, ours and the third party's in examples/custom_target alike."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesdk_targets
from edgesdk_converters.calibration import Samples
from edgesdk_converters.cost import Layer, layers
from edgesdk_converters.errors import DeviceError, DoesNotFit, RecipeError, TargetError, Unsupported
from edgesdk_converters.model import Model
from edgesdk_converters.passes import Given
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets import device, onnxruntime_support, runner
from edgesdk_targets.bundle import Manifest
from edgesdk_targets.target import Compiled, Segment, Target, device_profile, make

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_target"
EVERY = [*edgesdk_targets.TARGETS, "tinyboard"]


@pytest.fixture(autouse=True)
def example_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example announced as an installed package would be."""
    entry = importlib.metadata.EntryPoint("tinyboard", "edgesdk_tinyboard:TinyBoard", "edgesdk.targets")
    real = importlib.metadata.entry_points
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(
        "edgesdk_converters.plugins.entry_points",
        lambda group: [*real(group=group), *([entry] if group == "edgesdk.targets" else [])],
    )
    yield
    sys.modules.pop("edgesdk_tinyboard", None)


def usable(name: str) -> Target:
    """The target with its default device."""
    return make(name, None)


def suited(name: str, model: Model) -> Model:
    """The model as the target's own recipe leaves it, where it takes none in fp32."""
    made = usable(name)
    if "fp32" in made.precisions:
        return model
    samples = Samples.from_arrays(
        {"x": np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)}, model.signature, "x"
    )
    return Recipe.from_plain(made.recipe(made.default_precision), "test").run(model, Given(model, samples))


@pytest.fixture(scope="module")
def huge() -> Model:
    """A model of 400 MB of weights."""
    weight = np.zeros((10_000, 10_000), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], name="fc")], "huge",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 10_000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10_000])],
    )  # fmt: skip
    graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "huge")


def test_the_list_of_targets_holds_the_example() -> None:
    assert edgesdk_targets.known() == tuple(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_a_target_is_a_frozen_dataclass_that_names_itself(name: str) -> None:
    cls = edgesdk_targets.find(name)
    assert cls.name == name
    assert cls.title
    assert cls.__doc__
    assert issubclass(cls, Target)
    made = usable(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.device = made.device  # type: ignore[misc]


@pytest.mark.parametrize("name", EVERY)
def test_it_has_devices_of_its_own_and_the_default_is_one_of_them(name: str) -> None:
    cls = edgesdk_targets.find(name)
    names = [profile.name for profile in cls.devices()]
    assert cls.default_device in names
    assert len(set(names)) == len(names)
    for profile in cls.devices():
        assert profile.target == name
        assert device_profile(profile.name) == profile
        assert type(make(None, profile.name)) is cls
        for key, fact in profile.facts.items():
            assert fact.source.strip(), key


def test_device_names_are_unique_over_all_targets() -> None:
    names = [profile.name for name in EVERY for profile in edgesdk_targets.find(name).devices()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", EVERY)
def test_options_have_defaults_and_an_unknown_one_lists_the_known(name: str) -> None:
    cls = edgesdk_targets.find(name)
    options = [f for f in dataclasses.fields(cls) if f.name != "device"]
    assert options
    assert all(f.default is not dataclasses.MISSING for f in options)
    assert all(f"`{f.name}`" in (cls.__doc__ or "") or f.name == "dla_core" for f in options)
    made = usable(name)
    for option in options:
        if isinstance(option.default, tuple):  # entries joined by commas; no entry cannot be typed
            continue
        assert getattr(made.with_options({option.name: str(option.default)}), option.name) == option.default
    with pytest.raises(RecipeError, match=f"target {name} has no option 'colour'; known: ") as caught:
        made.with_options({"colour": "red"})
    assert all(f.name in caught.value.message for f in options)
    with pytest.raises(RecipeError, match="has no option 'device'"):
        made.with_options({"device": "x"})
    numeric = next(f for f in options if isinstance(f.default, (int, float)) and not isinstance(f.default, bool))
    with pytest.raises(RecipeError, match=rf"target {name}\.{numeric.name}: got 'many'"):
        made.with_options({numeric.name: "many"})


@pytest.mark.parametrize("name", EVERY)
def test_every_precision_is_a_valid_recipe_and_another_lists_them(name: str) -> None:
    made = usable(name)
    assert made.default_precision in made.precisions
    for precision in made.precisions:
        recipe = Recipe.from_plain(made.recipe(precision), "test")
        assert [step.name for step in recipe.whole] == [step for step, _ in made.precisions[precision]]
    with pytest.raises(TargetError, match=rf"target {name} has no precision 'int3'; it has: {made.default_precision}"):
        made.recipe("int3")


@pytest.mark.parametrize("name", EVERY)
def test_compiling_is_pure_and_deterministic_and_leaves_the_model(name: str, small_convnet: Callable[..., Model]) -> None:
    model = suited(name, small_convnet())
    before, digest = model.to_bytes(), model.digest
    made = usable(name)
    made.check(Segment(model))
    first, second = made.compile(Segment(model)), usable(name).compile(Segment(suited(name, small_convnet())))
    assert isinstance(first, Compiled)
    assert first == second
    assert model.to_bytes() == before
    assert model.digest == digest
    assert first.runtime.file in first.files
    artefact = made.artefact(first.files, first.runtime)
    assert artefact and set(artefact) <= set(first.files), "its size is that of files that are there"
    assert first.runtime.name in runner.RUNNERS
    assert first.runtime.providers
    assert all(isinstance(data, bytes) for data in first.files.values())
    assert first.runtime.name != "onnxruntime" or onnxruntime_support.version_key(first.runtime.minimum)


@pytest.mark.parametrize("name", EVERY)
def test_a_source_that_it_runs_in_the_end_is_not_refused_before_any_pass(name: str, small_convnet: Callable[..., Model]) -> None:
    made, model = usable(name), small_convnet()
    recipe = Recipe.from_plain(made.recipe(made.default_precision), "test")
    made.check_source(model, recipe.whole)
    made.check(Segment(suited(name, model)))


@pytest.mark.parametrize("name", EVERY)
def test_a_model_in_float_is_estimated_as_its_layers_are(name: str, small_convnet: Callable[..., Model]) -> None:
    made, model = usable(name), small_convnet()
    rows = made.estimate_model(model, layers(model), made.default_precision)
    assert rows == made.estimate(layers(model), made.default_precision)


@pytest.mark.parametrize("name", EVERY)
def test_what_it_compiles_runs_to_the_same_answers(name: str, tmp_path: Path, small_convnet: Callable[..., Model]) -> None:
    model = suited(name, small_convnet())
    made = usable(name)
    compiled = made.compile(Segment(model))
    manifest = Manifest("m", made.name, made.device.name, "fp32", model.signature, compiled.runtime)
    written = bundles.write(tmp_path / "a.edge", manifest, compiled.files)
    loaded = runner.load(bundles.open_bundle(written.path), runner.RunOptions(allow_fallback=True))
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    from edgesdk_converters.reference import Reference

    assert np.allclose(loaded.run({"x": x})[0], Reference(model).run({"x": x})["y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_estimates_put_totals_first_and_carry_intervals(name: str, small_convnet: Callable[..., Model]) -> None:
    made = usable(name)
    for precision in made.precisions:
        rows = made.estimate(layers(small_convnet()), precision)
        assert {"latency_ms", "lut" if name == "fpga" else "peak_memory_bytes"} <= {row.name for row in rows}
        assert rows[0].layer is None
        for row in rows:
            assert row.provenance in ("estimated", "unavailable")
            assert row.where == made.device.name
            if row.provenance == "estimated":
                assert row.interval is not None
                assert row.value is not None
                assert row.interval.low <= row.value <= row.interval.high
        totals = [row.name for row in rows if row.layer is None]
        assert len(set(totals)) == len(totals)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "fpga"])
def test_a_model_beyond_every_runtime_is_unsupported(
    name: str, small_convnet: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = onnxruntime_support.Release("1.15", 16, 3, 8)
    monkeypatch.setattr(onnxruntime_support, "releases", lambda: (release,))
    with pytest.raises(Unsupported, match="opset 17"):
        usable(name).check(Segment(small_convnet()))


@pytest.mark.parametrize("board", ["raspberry-pi-zero-2-w", "tinyboard-1"])
def test_a_model_too_large_for_a_small_board_does_not_fit(board: str, huge: Model) -> None:
    with pytest.raises(DoesNotFit) as caught:
        make(None, board).check(Segment(huge))
    assert caught.value.need > caught.value.have > 100_000_000
    assert caught.value.need > 400_000_000
    assert caught.value.unit == "bytes"
    assert board in caught.value.message


def test_the_same_model_fits_a_larger_board(huge: Model) -> None:
    make(None, "raspberry-pi-5", {"memory_gb": "4"}).check(Segment(huge))


def test_a_device_implies_its_target_and_the_two_must_agree() -> None:
    assert make(None, "jetson-agx-orin").name == "jetson"
    assert make("jetson", "jetson-agx-orin").device.name == "jetson-agx-orin"
    with pytest.raises(DeviceError, match="device 'raspberry-pi-4' belongs to target 'raspberry-pi', not 'jetson'; its"):
        make("jetson", "raspberry-pi-4")
    with pytest.raises(TargetError, match="no target given") as caught:
        make(None, None)
    assert all(name in caught.value.hint for name in EVERY)
    with pytest.raises(TargetError, match="unknown target 'toaster'; known: raspberry-pi, jetson, fpga, server, tinyboard"):
        make("toaster", None)
    with pytest.raises(DeviceError, match="unknown device 'toaster'"):
        make(None, "toaster")


def announce(monkeypatch: pytest.MonkeyPatch, **plugins: str) -> None:
    entries = [importlib.metadata.EntryPoint(name, value, "edgesdk.targets") for name, value in plugins.items()]
    monkeypatch.setattr("edgesdk_converters.plugins.entry_points", lambda group: entries if group == "edgesdk.targets" else [])


def test_a_broken_plugin_is_an_error_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "badsyntax.py").write_text("def (:")
    (tmp_path / "noclass.py").write_text("Thing = 3\n")
    (tmp_path / "baddevices.py").write_text(
        "from edgesdk_targets.target import Target\nfrom edgesdk_converters.errors import DeviceError\n"
        "class T(Target):\n    name = 'bad'\n    @classmethod\n    def devices(cls):\n"
        "        raise DeviceError('its file is gone')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    announce(
        monkeypatch,
        missing="no_such_module:T",
        syntax="badsyntax:T",
        lacking="noclass:Other",
        noclass="noclass:Thing",
        bad="baddevices:T",
    )
    for name in ("missing", "syntax", "lacking", "noclass"):
        with pytest.raises(TargetError, match=f"'{name}' is announced as"):
            edgesdk_targets.find(name)
        assert name in edgesdk_targets.known()
    assert make(None, "raspberry-pi-4").name == "raspberry-pi"
    with pytest.raises(DeviceError, match="unknown device 'nope'"):
        device_profile("nope")
    with pytest.raises(DeviceError, match="its file is gone"):
        make("bad", None)


def test_a_plugin_cannot_take_the_name_of_a_target_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, jetson="no_such_module:Evil")
    assert edgesdk_targets.find("jetson").__module__ == "edgesdk_targets.jetson"
    assert edgesdk_targets.known().count("jetson") == 1


def test_a_target_without_its_default_device_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "of_target", lambda _: ())
    with pytest.raises(TargetError, match="target 'jetson' names 'jetson-orin-nano' as its default device, but has no such"):
        make("jetson", None)


def test_the_base_class_promises_and_does_nothing() -> None:
    base: Any = Target(device.profile("this-machine"))
    for call in (lambda: base.check(None), lambda: base.compile(None), lambda: base.estimate((), "fp32")):
        with pytest.raises(NotImplementedError):
            call()
    assert Layer("a", "b", "c").macs == 0
