"""A session: right answers, clear refusals, many threads, buffers of the caller's."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgesdk
from edgesdk_converters.errors import BundleError, DeviceError, EdgeError, ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.signature import Postprocess, Preprocess, Processing

RNG = np.random.default_rng(0)


def image_model(batch: int | str = 1) -> Model:
    """Conv, pool, dense: an image classifier of ten classes with image preprocessing."""
    weight = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32)
    dense = RNG.standard_normal((4, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["m", "d"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 10])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(dense, "d")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    processing = Processing(
        {"x": Preprocess(layout="NCHW", scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))},
        {"y": Postprocess(softmax=True, labels=tuple("abcdefghij"))},
    )
    return Model.from_proto(proto, "net", processing=processing)


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("session") / "net.edge"
    edgesdk.export(image_model(), device="this-machine", out=path)
    return path


def sample() -> np.ndarray:
    return RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)


def bare(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession((path / "model.onnx").read_bytes(), providers=["CPUExecutionProvider"])


def test_outputs_equal_those_of_a_bare_onnxruntime_session(bundle_path: Path) -> None:
    x = sample()
    with edgesdk.load(bundle_path) as session:
        got = session.run({"x": x})
    assert list(got) == ["y"]
    np.testing.assert_allclose(got["y"], bare(bundle_path).run(None, {"x": x})[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, ["missing 'x'"]),
        ({"z": sample()}, ["missing 'x'", "unknown 'z'"]),
        ({"x": sample(), "z": sample()}, ["unknown 'z'"]),
        ({"x": sample()[0]}, ["shape (3, 8, 8)", "(1, 3, 8, 8)"]),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, ["(1, 3, 8, 9)"]),
        ({"x": np.zeros((2, 3, 8, 8), np.float32)}, ["(2, 3, 8, 8)"]),
        ({"x": sample().astype(np.float64)}, ["float64", "float32"]),
        ({"x": sample().astype(">f4")}, ["float32"]),
        ({"x": sample().tolist()}, ["list", "numpy array"]),
    ],
)
def test_a_wrong_input_is_named_with_what_is_allowed(bundle_path: Path, inputs: dict[str, np.ndarray], words: list[str]) -> None:
    with edgesdk.load(bundle_path) as session, pytest.raises(ModelError) as caught:
        session.run(inputs)
    for word in words:
        assert word in caught.value.line()


def test_a_dynamic_dimension_takes_any_size_and_the_fixed_ones_stay_checked(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.edge"
    edgesdk.export(image_model("batch"), device="raspberry-pi-4", out=path)
    with edgesdk.load(path) as session:
        for batch in (1, 2, 5):
            assert session.run({"x": np.zeros((batch, 3, 8, 8), np.float32)})["y"].shape == (batch, 10)
        with pytest.raises(ModelError, match=r"\(batch, 3, 8, 8\)"):
            session.run({"x": np.zeros((2, 3, 8, 7), np.float32)})


def test_raw_images_give_what_preprocessing_by_hand_gives(bundle_path: Path) -> None:
    raw = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    by_hand = ((raw.astype(np.float32) / 255 - np.float32([0.5, 0.4, 0.3])) / np.float32(0.2)).transpose(2, 0, 1)[None]
    with edgesdk.load(bundle_path) as session:
        got = session.run({"x": raw}, raw=True)["y"]
        logits = session.run({"x": np.ascontiguousarray(by_hand, np.float32)})["y"]
        best = session.top({"y": got}, 3)
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert got.sum() == pytest.approx(1.0, rel=1e-5)
    assert best[0] == ("abcdefghij"[int(logits.argmax())], pytest.approx(float(expected.max()), rel=1e-4))


def test_a_raw_image_of_the_wrong_kind_is_refused(bundle_path: Path) -> None:
    with edgesdk.load(bundle_path) as session:
        with pytest.raises(ModelError, match="height x width x 3"):
            session.run({"x": np.zeros((8, 8), np.uint8)}, raw=True)
        with pytest.raises(ModelError, match="shape"):
            session.run({"x": np.zeros((9, 9, 3), np.uint8)}, raw=True)


def test_outputs_are_written_into_the_callers_buffers(bundle_path: Path) -> None:
    x = sample()
    out = {"y": np.full((1, 10), np.nan, np.float32)}
    with edgesdk.load(bundle_path) as session:
        wanted = session.run({"x": x})["y"]
        got = session.run({"x": x}, out=out)
        assert got["y"] is out["y"]
        np.testing.assert_array_equal(out["y"], wanted)
        again = session.run({"x": 2 * x})["y"]
        session.run({"x": 2 * x}, out=out)
        np.testing.assert_array_equal(out["y"], again)


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros((1, 9), np.float32),
        np.zeros((1, 10), np.float64),
        np.zeros((1, 20), np.float32)[:, ::2],
        [[0.0] * 10],
        None,
    ],
)
def test_a_buffer_that_does_not_fit_is_refused(bundle_path: Path, buffer: object) -> None:
    with edgesdk.load(bundle_path) as session, pytest.raises(ModelError, match="out"):
        session.run({"x": sample()}, out={"y": buffer})  # type: ignore[dict-item]


def test_a_read_only_buffer_is_refused(bundle_path: Path) -> None:
    buffer = np.zeros((1, 10), np.float32)
    buffer.flags.writeable = False
    with edgesdk.load(bundle_path) as session, pytest.raises(ModelError, match="writable"):
        session.run({"x": sample()}, out={"y": buffer})


def test_inputs_that_are_not_contiguous_give_the_same_answer(bundle_path: Path) -> None:
    wide = RNG.standard_normal((1, 3, 8, 16)).astype(np.float32)
    strided = wide[..., ::2]
    with edgesdk.load(bundle_path) as session:
        wanted = session.run({"x": np.ascontiguousarray(strided)})["y"]
        np.testing.assert_array_equal(session.run({"x": strided})["y"], wanted)
        out = {"y": np.empty((1, 10), np.float32)}
        np.testing.assert_array_equal(session.run({"x": strided}, out=out)["y"], wanted)


def test_eight_threads_at_once_all_get_their_own_answers(bundle_path: Path) -> None:
    inputs = [sample() for _ in range(8)]
    reference = bare(bundle_path)
    wanted = [reference.run(None, {"x": x})[0] for x in inputs]
    wrong: list[int] = []
    with edgesdk.load(bundle_path) as session:

        def work(index: int) -> None:
            for _ in range(200):
                if not np.allclose(session.run({"x": inputs[index]})["y"], wanted[index], rtol=1e-5, atol=1e-6):
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_closed_session_says_so(bundle_path: Path) -> None:
    session = edgesdk.load(bundle_path)
    session.close()
    session.close()
    with pytest.raises(EdgeError, match="closed"):
        session.run({"x": sample()})
    with pytest.raises(EdgeError, match="closed"):
        session.run({"x": sample()}, out={"y": np.empty((1, 10), np.float32)})


def test_a_missing_provider_is_an_error_and_a_warning_only_where_it_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "jetson.edge"
    edgesdk.export(image_model(), device="jetson-orin-nano", out=path)
    with pytest.raises(DeviceError, match="TensorrtExecutionProvider") as caught:
        edgesdk.load(path)
    assert "--allow-fallback" in caught.value.hint
    with pytest.warns(RuntimeWarning, match="TensorrtExecutionProvider"), edgesdk.load(path, allow_fallback=True) as session:
        assert session.facts.fallback
        assert session.facts.providers == ("CPUExecutionProvider",)
        assert session.run({"x": sample()})["y"].shape == (1, 10)


def test_threads_must_not_be_negative(bundle_path: Path) -> None:
    with pytest.raises(DeviceError, match="threads"):
        edgesdk.load(bundle_path, threads=-1)


def test_load_refuses_every_damaged_byte_it_is_shown(bundle_path: Path, tmp_path: Path) -> None:
    import shutil

    rng = np.random.default_rng(5)
    files = sorted(p for p in bundle_path.rglob("*") if p.is_file())
    for trial in range(60):
        copy = tmp_path / f"copy{trial}.edge"
        shutil.copytree(bundle_path, copy)
        victim = copy / files[int(rng.integers(len(files)))].relative_to(bundle_path)
        data = bytearray(victim.read_bytes())
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        victim.write_bytes(data)
        with pytest.raises(BundleError):
            edgesdk.load(copy)
        with pytest.raises(BundleError):
            edgesdk.verify(copy)
        shutil.rmtree(copy)
