"""Jetson: precision in the graph or not at all, boards and releases that fit each other, and a provider without fallback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from onnx import TensorProto, helper

from edgesdk_converters.errors import DoesNotFit, TargetError, Unsupported
from edgesdk_converters.model import Model, Step
from edgesdk_targets import device, jetson, jetson_support
from edgesdk_targets.device import profile
from edgesdk_targets.jetson import Jetson
from edgesdk_targets.onnxruntime_support import version_key
from edgesdk_targets.target import Segment, make

F, H = TensorProto.FLOAT, TensorProto.FLOAT16
Build = Callable[..., Model]
BOARDS = [d.name for d in Jetson.devices() if not d.estimate_only]


def target(board: str = "jetson-orin-nano", **options: Any) -> Jetson:
    return Jetson(profile(board), **options)


@pytest.fixture
def half_relu(model_of: Build) -> Model:
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], name="in", to=H),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Cast", ["b"], ["y"], name="out", to=F),
    ]
    return model_of(nodes, {"x": (F, [1, 2, 8, 8])}, {"y": (F, [1, 2, 8, 8])}, history=(Step("half"),))


@pytest.mark.parametrize("board", BOARDS)
def test_an_ordinary_network_compiles_for_every_board_and_release_it_has(board: str, small_convnet: Callable[..., Model]) -> None:
    segment = Segment(small_convnet())
    for version in jetson_support.versions():
        release = jetson_support.jetpack(version)
        if board in release.boards and release.strongly_typed:
            made = target(board, jetpack=version)
            made.check(segment)
            assert version_key(made.compile(segment).runtime.minimum) >= version_key(release.onnxruntime_min)


def test_the_bundle_asks_for_tensorrt_alone_and_for_no_weak_typing(small_convnet: Callable[..., Model]) -> None:
    compiled = target().compile(Segment(small_convnet()))
    (provider,) = compiled.runtime.providers
    assert provider.name == "TensorrtExecutionProvider"
    assert provider.options == {
        "trt_engine_cache_enable": "True", "trt_timing_cache_enable": "True", "trt_builder_optimization_level": "3",
    }  # fmt: skip
    assert compiled.plan == ({"step": "warm"},)
    known = jetson_support._tables()["onnxruntime_tensorrt_options"]
    assert provider.options.keys() <= known.keys()


@pytest.mark.parametrize("version", ["6.1", "6.2", "7.2"])
def test_the_runtime_is_at_least_the_one_known_to_be_strongly_typed(version: str, small_convnet: Callable[..., Model]) -> None:
    minimum = target(jetpack=version).compile(Segment(small_convnet())).runtime.minimum
    assert version_key(minimum) >= (1, 22)


def test_a_newer_opset_raises_the_runtime_further(small_convnet: Callable[..., Model]) -> None:
    old = target(jetpack="7.2").compile(Segment(small_convnet(13))).runtime.minimum
    new = target(jetpack="7.2").compile(Segment(small_convnet(24, 11))).runtime.minimum
    assert version_key(new) >= version_key(old) >= (1, 24)


def test_a_jetpack_that_takes_precision_as_a_hint_is_refused(small_convnet: Callable[..., Model]) -> None:
    for call in ("check", "compile"):
        with pytest.raises(TargetError, match=r"JetPack 6\.0 has TensorRT 8\.6\.2, which takes precision as a hint") as caught:
            getattr(target(jetpack="6.0"), call)(Segment(small_convnet()))
        assert "6.1 or newer" in caught.value.hint


def test_an_unknown_jetpack_and_one_that_the_board_has_not_list_those_it_has(small_convnet: Callable[..., Model]) -> None:
    with pytest.raises(TargetError, match=r"unknown JetPack '5'; known: 4\.6"):
        target(jetpack="5").check(Segment(small_convnet()))
    with pytest.raises(TargetError, match=r"JetPack 7\.2\.2 does not run on jetson-orin-nano; it has: .*6\.2"):
        target(jetpack="7.2.2").check(Segment(small_convnet()))
    with pytest.raises(TargetError, match=r"JetPack 6\.2 does not run on jetson-nano; it has: 4\.6$"):
        target("jetson-nano").check(Segment(small_convnet()))


def test_boards_that_are_only_estimated_say_why_and_are_estimated(small_convnet: Callable[..., Model]) -> None:
    from edgesdk_converters.cost import layers

    old = [d for d in Jetson.devices() if d.estimate_only]
    assert {d.name for d in old} == {"jetson-nano", "jetson-tx2-nx", "jetson-agx-xavier"}
    for board in old:
        assert "TensorRT 8" in board.estimate_only
        rows = Jetson(board).estimate(layers(small_convnet()), "fp32")
        assert rows[0].name == "latency_ms"
        assert rows[0].value is not None
        assert rows[0].value > 0


def test_an_operator_it_cannot_run_is_refused_with_node_and_operator(model_of: Build) -> None:
    node = helper.make_node("Det", ["x"], ["y"], name="det")
    with pytest.raises(Unsupported, match=r"jetson cannot run node 'det' \(Det\)") as caught:
        target().check(Segment(model_of([node], {"x": (F, [2, 2])}, {"y": (F, [])})))
    assert (caught.value.node, caught.value.operator) == ("det", "Det")


def test_dynamic_shapes_are_refused(model_of: Build) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    with pytest.raises(Unsupported, match="'n' is dynamic") as caught:
        target().check(Segment(model_of([node], {"x": (F, ["n", 2])}, {"y": (F, ["n", 2])})))
    assert "--shape" in caught.value.hint


def test_weights_that_are_two_in_four_are_told_to_tensorrt(small_convnet: Callable[..., Model]) -> None:
    model = small_convnet()
    sparse = model.changed(model.copy_proto(), Step("sparsify", {"kept": 2, "of": 4}))
    for found, wanted in ((model, None), (sparse, "True")):
        options = target().compile(Segment(found)).runtime.providers[0].options
        assert options.get("trt_sparsity_enable") == wanted
    assert "trt_sparsity_enable" in jetson_support._tables()["onnxruntime_tensorrt_options"]


@pytest.mark.parametrize("level", [-1, 6])
def test_the_builder_level_has_bounds(level: int, small_convnet: Callable[..., Model]) -> None:
    with pytest.raises(TargetError, match=rf"builder_level is {level}; allowed: 0 to 5"):
        target(builder_level=level).check(Segment(small_convnet()))
    for good in (0, 5):
        made = target(builder_level=good)
        made.check(Segment(small_convnet()))
        options = made.compile(Segment(small_convnet())).runtime.providers[0].options
        assert options["trt_builder_optimization_level"] == str(good)


def test_the_dla_runs_fp16_with_the_weak_flag_only_it_needs(half_relu: Model) -> None:
    made = target("jetson-agx-orin", dla=True, dla_core=1)
    made.check(Segment(half_relu))
    compiled = made.compile(Segment(half_relu))
    options = compiled.runtime.providers[0].options
    assert (options["trt_dla_enable"], options["trt_dla_core"], options["trt_fp16_enable"]) == ("True", "1", "True")
    assert any("weakly typed" in note for note in compiled.notes)
    without = target("jetson-agx-orin").compile(Segment(half_relu))
    assert not any(
        key in without.runtime.providers[0].options for key in ("trt_fp16_enable", "trt_int8_enable", "trt_dla_enable")
    )
    assert without.notes == ()


@pytest.mark.parametrize(
    ("board", "options", "says"),
    [
        ("jetson-orin-nano", {"dla": True}, r"jetson-orin-nano has 0 DLA cores; core 0 is none of them"),
        ("jetson-orin-nx", {"dla": True, "dla_core": 2}, r"has \d DLA cores; core 2 is none of them"),
        ("jetson-agx-orin", {"dla": True, "dla_core": 2}, r"has 2 DLA cores; core 2 is none of them"),
        ("jetson-agx-orin", {"dla": True, "dla_core": -1}, r"core -1 is none of them"),
        ("jetson-agx-orin", {"dla": True, "jetpack": "7.2"}, r"TensorRT 10\.16\.2 of JetPack 7\.2 has no DLA"),
    ],
)
def test_a_dla_that_is_not_there_is_refused(half_relu: Model, board: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(TargetError, match=says):
        target(board, **options).check(Segment(half_relu))


def test_the_dla_refuses_fp32_wholly_and_in_part(half_relu: Model, model_of: Build, small_convnet: Callable[..., Model]) -> None:
    made = target("jetson-agx-orin", dla=True)
    with pytest.raises(TargetError, match="the DLA runs fp16 and int8 only; this model is fp32") as caught:
        made.check(Segment(small_convnet()))
    assert caught.value.hint == "give --precision fp16"
    node = helper.make_node("Relu", ["x"], ["y"], name="kept")
    kept = model_of([node], {"x": (F, [4])}, {"y": (F, [4])}, history=(Step("half"),))
    with pytest.raises(Unsupported, match="it is fp32; through ONNX Runtime the DLA would turn it into fp16"):
        made.check(Segment(kept))


def test_a_model_that_its_memory_cannot_hold_is_refused_with_both_amounts(
    small_convnet: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetson, "SYSTEM_RESERVE_BYTES", profile("jetson-orin-nano").need("memory_bytes", int) - 1_000_000)
    with pytest.raises(DoesNotFit) as caught:
        target().check(Segment(small_convnet()))
    assert caught.value.have == 1_000_000
    assert caught.value.need > 70_000_000
    assert caught.value.unit == "bytes"


def test_estimates_are_faster_in_fp16_and_memory_is_marked(small_convnet: Callable[..., Model]) -> None:
    from edgesdk_converters.cost import Layer

    heavy = [Layer("a", "Conv", "conv", macs=10**11, in_bytes=10**6, out_bytes=10**6)]
    full, half = (target().estimate(heavy, precision)[0].value for precision in ("fp32", "fp16"))
    assert full is not None
    assert half is not None
    assert 2 < full / half < 10
    memory = target().estimate(heavy, "fp32")[-1]
    assert (memory.name, memory.extrapolated) == ("peak_memory_bytes", True)


def test_operators_whose_length_depends_on_the_data_are_named_as_slow(model_of: Build) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"], name="it")
    model = model_of([node], {"x": (F, [4])}, {"y": (TensorProto.INT64, [1, "n"])})
    assert any("NonZero" in note and "slow" in note for note in target().compile(Segment(model)).notes)


def test_the_default_board_and_every_release_of_the_table_are_profiles() -> None:
    assert make("jetson", None).device.name == "jetson-orin-nano"
    for version in jetson_support.versions():
        assert set(jetson_support.jetpack(version).boards) <= set(device.names())
    for board in Jetson.devices():
        mine = [v for v in jetson_support.versions() if board.name in jetson_support.jetpack(v).boards]
        if not board.estimate_only:
            told = board.need("jetpack", list)
            assert set(told) == {v for v in mine if jetson_support.jetpack(v).strongly_typed}
