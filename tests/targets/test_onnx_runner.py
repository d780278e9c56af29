"""The ONNX Runtime runner: the providers asked for and no other, right answers from many threads and into given buffers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.errors import DeviceError, EdgeError
from edgesdk_converters.model import Model
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden, onnx_runner
from edgesdk_targets.bundle import CPU, Bundle, Provider, Runtime
from edgesdk_targets.onnx_runner import TENSORRT, OnnxRunner
from edgesdk_targets.runner import RunOptions, load

FP, F16, I64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
FALLBACK = "session.disable_cpu_ep_fallback"


class Spy:
    """What an InferenceSession was asked for; it makes none that needs a provider which is not here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, active: list[str] | None = None) -> None:
        self.config: dict[str, str] = {}
        self.calls: list[dict[str, Any]] = []
        self.options: Any = None
        real_session, real_options = ort.InferenceSession, ort.SessionOptions
        spy = self

        class Options(real_options):  # type: ignore[misc, valid-type]
            def add_session_config_entry(self, key: str, value: str) -> None:
                spy.config[key] = value
                super().add_session_config_entry(key, value)

        def session(data: bytes, options: Any, **given: Any) -> Any:
            spy.calls.append(given)
            spy.options = options
            plain = real_options()
            plain.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            made = real_session(data, plain, providers=[CPU])
            if active is not None:
                made.get_providers = lambda: active
            return made

        monkeypatch.setattr(ort, "SessionOptions", Options)
        monkeypatch.setattr(ort, "InferenceSession", session)


def trt(model: Model, bundle_of: Callable[..., Bundle], path: Path) -> Bundle:
    return bundle_of(model, path, providers=(Provider(TENSORRT, {"trt_engine_cache_enable": "True"}),))


def test_the_answers_are_those_of_the_golden_vectors(small_bundle: Bundle) -> None:
    loaded = OnnxRunner(small_bundle)
    result = golden.compare(small_bundle, loaded)
    assert result is not None
    assert result.artifact_relative_error < 1e-6
    assert (loaded.facts.runtime, loaded.facts.version, loaded.facts.providers) == ("onnxruntime", ort.__version__, (CPU,))
    assert loaded.facts.fallback is False


def test_a_provider_that_is_missing_is_an_error_that_says_what_there_is(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = trt(small_convnet(), bundle_of, tmp_path / "a.edge")
    with pytest.raises(DeviceError, match=rf"runs on {TENSORRT}; this onnxruntime .* has .*{CPU}") as caught:
        load(bundle)
    assert "--allow-fallback" in caught.value.hint


def test_the_cpu_is_taken_only_when_allowed_and_the_facts_say_so(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = trt(small_convnet(), bundle_of, tmp_path / "a.edge")
    loaded = load(bundle, RunOptions(allow_fallback=True))
    assert (loaded.facts.fallback, loaded.facts.providers) == (True, (CPU,))
    assert golden.compare(bundle, loaded).holds  # type: ignore[union-attr]


def test_without_the_cpu_among_the_providers_the_runtime_may_not_fall_back_to_it(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = trt(small_convnet(), bundle_of, tmp_path / "a.edge")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CPU])
    spy = Spy(monkeypatch, [TENSORRT, CPU])
    loaded = load(bundle, RunOptions(allow_fallback=True))
    assert spy.config[FALLBACK] == "1"
    (given,) = spy.calls
    assert given["enable_fallback"] == 0
    assert given["providers"] == [TENSORRT]
    (options,) = given["provider_options"]
    assert options["trt_engine_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"]
    assert options["trt_engine_cache_path"].startswith(str(tmp_path / "cache" / "edgesdk" / "engines"))
    assert (loaded.facts.providers, loaded.facts.fallback) == ((TENSORRT,), False)


def test_a_provider_that_is_listed_but_did_not_start_is_an_error(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = trt(small_convnet(), bundle_of, tmp_path / "a.edge")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TENSORRT, CPU])
    Spy(monkeypatch, [CPU])
    with pytest.raises(DeviceError, match=f"did not start {TENSORRT} although it lists it"):
        load(bundle, RunOptions(allow_fallback=True))


def test_with_the_cpu_asked_for_falling_back_is_not_forbidden(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    OnnxRunner(small_bundle)
    assert FALLBACK not in spy.config
    assert spy.calls[0]["providers"] == [CPU]
    assert spy.calls[0]["enable_fallback"] == 0


def test_the_runtime_itself_refuses_the_cpu_where_it_is_forbidden(small_bundle: Bundle) -> None:
    """A real session of ONNX Runtime, whose only provider here is the CPU, must fail when the CPU may not be used."""
    runtime = replace(small_bundle.manifest.runtime, config={FALLBACK: "1"})
    manifest = replace(small_bundle.manifest, runtime=runtime, files={}, digest="")
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files}
    with pytest.raises(DeviceError, match=r"cannot load model\.onnx: .*CPU EP"):
        OnnxRunner(bundles.draft(small_bundle.path, manifest, files))


def test_settings_of_the_bundle_reach_the_session_and_threads_can_be_chosen(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime(
        "onnxruntime", "model.onnx", providers=(Provider(CPU),), threads=3, arena=False,
        config={"session.intra_op.allow_spinning": "0"},
    )  # fmt: skip
    bundle = bundle_of(small_convnet(), tmp_path / "a.edge", runtime=runtime)
    spy = Spy(monkeypatch)
    OnnxRunner(bundle)
    assert spy.options.intra_op_num_threads == 3
    assert spy.options.enable_cpu_mem_arena is False
    assert spy.config["session.intra_op.allow_spinning"] == "0"
    OnnxRunner(bundle, RunOptions(threads=1))
    assert spy.options.intra_op_num_threads == 1


def test_a_runtime_that_is_too_old_is_an_error_with_both_versions(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime("onnxruntime", "model.onnx", minimum="1.22", providers=(Provider(CPU),))
    bundle = bundle_of(small_convnet(), tmp_path / "a.edge", runtime=runtime)
    OnnxRunner(bundle)
    for old in ("1.21.1", "1.9.0", "0.5"):
        monkeypatch.setattr(ort, "__version__", old)
        with pytest.raises(DeviceError, match=rf"needs onnxruntime 1\.22 or newer; this is {old}"):
            OnnxRunner(bundle)
    for new in ("1.22.0", "1.100.1", "2.0"):
        monkeypatch.setattr(ort, "__version__", new)
        OnnxRunner(bundle)


def test_a_payload_that_is_no_model_is_a_device_error(small_bundle: Bundle) -> None:
    files = {name: small_bundle.read(name) for name in small_bundle.manifest.files}
    manifest = replace(small_bundle.manifest, files={}, digest="")
    for bad in (b"", b"\x00" * 100, files["model.onnx"][:200]):
        with pytest.raises(DeviceError, match=r"cannot load model\.onnx"):
            OnnxRunner(bundles.draft(small_bundle.path, manifest, files | {"model.onnx": bad}))


def test_providers_given_by_the_caller_win(
    tmp_path: Path, small_convnet: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    bundle = trt(small_convnet(), bundle_of, tmp_path / "a.edge")
    assert OnnxRunner(bundle, RunOptions(providers=(CPU,))).facts.providers == (CPU,)


FEED = {"x": np.zeros((1, 3, 8, 8), np.float32)}


def test_nodes_are_counted_as_the_session_recorded_them(small_bundle: Bundle) -> None:
    loaded = OnnxRunner(small_bundle)
    assert loaded.facts.nodes == {CPU: 5}
    assert loaded.count_nodes(FEED) == {CPU: 5}


def test_before_onnxruntime_1_24_nodes_are_counted_in_a_profiled_run_that_leaves_no_file(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = "get_provider_graph_assignment_info"
    monkeypatch.delattr(next(cls for cls in ort.InferenceSession.__mro__ if api in vars(cls)), api)
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(onnx_runner.tempfile, "tempdir", str(tmp_path / "temporary"))
    loaded = OnnxRunner(small_bundle)
    assert loaded.facts.nodes == {}
    counted = loaded.count_nodes(FEED)
    assert counted.keys() == {CPU}
    assert 4 <= counted[CPU] <= 7  # fused or with layout changes, but each once, however many events it has
    assert list((tmp_path / "work").iterdir()) == []
    assert list((tmp_path / "temporary").iterdir()) == []


def test_nodes_of_a_profile_are_counted_once_each_by_provider(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, provider: str) -> dict[str, Any]:
        return {"cat": "Node", "name": name, "args": {"provider": provider}}

    events = [
        {"cat": "Session", "name": "model_run"}, event("a_fence_before", TENSORRT), event("a_kernel_time", TENSORRT),
        event("a_kernel_time", TENSORRT), event("b_kernel_time", TENSORRT), event("c_kernel_time", CPU),
        {"cat": "Node", "name": "d_kernel_time", "args": {}}, {"cat": "Node", "name": "e_kernel_time"},
    ]  # fmt: skip

    class Session:
        def run(self, names: list[str], feed: object) -> None: ...

        def end_profiling(self) -> str:
            place = small_bundle.path.parent / "profile.json"
            place.write_text(bundles.json.dumps(events))
            return str(place)

    loaded = OnnxRunner(small_bundle)
    loaded.facts = replace(loaded.facts, nodes={})
    monkeypatch.setattr(loaded, "_reopen", lambda profile: Session())
    assert loaded.count_nodes(FEED) == {TENSORRT: 2, CPU: 1}


def test_eight_threads_at_once_each_get_their_own_answer(small_bundle: Bundle) -> None:
    loaded = OnnxRunner(small_bundle)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(8)]
    wanted = [loaded.run(feed)[0].copy() for feed in feeds]
    wrong: list[int] = []

    def work(number: int) -> None:
        out = {"y": np.empty((1, 5), np.float32)}
        for turn in range(60):
            if turn % 2:
                got = loaded.run(feeds[number])[0]
            else:
                loaded.run_into(feeds[number], out)
                got = out["y"]
            if not np.allclose(got, wanted[number], rtol=1e-5, atol=1e-6):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len({w.tobytes() for w in wanted}) == 8


def test_run_into_writes_into_the_given_memory(small_bundle: Bundle) -> None:
    loaded = OnnxRunner(small_bundle)
    memory = np.full(15, 99.0, np.float32)
    out = {"y": memory[5:10].reshape(1, 5)}
    address = out["y"].ctypes.data
    feed = {"x": np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    loaded.run_into(feed, out)
    assert out["y"].ctypes.data == address
    assert np.allclose(memory[5:10], loaded.run(feed)[0][0], rtol=1e-6)
    assert (memory[:5] == 99).all()
    assert (memory[10:] == 99).all()


@pytest.mark.parametrize("into", [False, True])
def test_inputs_that_do_not_lie_in_one_piece_are_read_right(small_bundle: Bundle, into: bool) -> None:
    loaded = OnnxRunner(small_bundle)
    dense = np.random.default_rng(2).standard_normal((1, 3, 8, 8)).astype(np.float32)
    wide = np.zeros((1, 3, 8, 16), np.float32)
    wide[..., ::2] = dense
    wanted = loaded.run({"x": dense})[0]
    views = [
        np.asfortranarray(dense), wide[..., ::2], np.ascontiguousarray(dense.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
        np.ascontiguousarray(dense[..., ::-1])[..., ::-1], np.broadcast_to(dense, (1, 3, 8, 8)),
    ]  # fmt: skip
    for view in views:
        assert np.array_equal(view, dense)
        out = {"y": np.zeros((1, 5), np.float32)}
        if into:
            loaded.run_into({"x": view}, out)
        else:
            out["y"] = loaded.run({"x": view})[0]
        assert np.allclose(out["y"], wanted, rtol=1e-5, atol=1e-6)


def test_outputs_of_other_types_and_several_at_once_come_in_the_signatures_order(
    tmp_path: Path, model_of: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    model = model_of(
        [
            helper.make_node("Cast", ["x"], ["half"], to=F16),
            helper.make_node("Greater", ["x", "zero"], ["sign"]),
            helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        ],
        {"x": (FP, [2, 3])},
        {"best": (I64, [2]), "half": (F16, [2, 3]), "sign": (BOOL, [2, 3])},
        {"zero": np.zeros(1, np.float32)},
    )
    bundle = bundle_of(model, tmp_path / "a.edge")
    loaded = OnnxRunner(bundle)
    x = np.array([[1, -2, 3], [4, 0, -6]], np.float32)
    best, half, sign = loaded.run({"x": x})
    assert best.tolist() == [2, 0]
    assert half.dtype == np.float16
    assert half.tolist() == x.tolist()
    assert sign.tolist() == (x > 0).tolist()
    out = {"sign": np.zeros((2, 3), bool), "best": np.zeros(2, np.int64), "half": np.zeros((2, 3), np.float16)}
    loaded.run_into({"x": x}, out)
    assert out["best"].tolist() == [2, 0]
    assert out["half"].tolist() == x.tolist()
    assert out["sign"].tolist() == (x > 0).tolist()


def test_a_run_that_fails_is_an_edge_error(
    tmp_path: Path, model_of: Callable[..., Model], bundle_of: Callable[..., Bundle]
) -> None:
    model = model_of(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        {"i": (I64, [1])},
        {"y": (FP, [1])},
        {"table": np.zeros(2, np.float32)},
    )
    loaded = OnnxRunner(bundle_of(model, tmp_path / "a.edge"))
    bad = {"i": np.array([7])}
    with pytest.raises(EdgeError, match="the model failed on these inputs"):
        loaded.run(bad)
    with pytest.raises(EdgeError, match="the model failed on these inputs"):
        loaded.run_into(bad, {"y": np.zeros(1, np.float32)})
    assert loaded.run({"i": np.array([1])})[0].tolist() == [0.0]
