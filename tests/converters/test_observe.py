"""Observe: ranges are those of the stored activations, whatever the chunks, and clips are the best there are."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

from edgesdk_converters import observe as module
from edgesdk_converters.calibration import Samples, synthetic
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.observe import channel_peaks, extremes, observe, outlier_channels
from edgesdk_converters.reference import Reference


@pytest.fixture
def model(conv_net: onnx.ModelProto) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(conv_net)
    return Model.from_proto(proto, "m")


@pytest.fixture
def identity(build: Any) -> Model:
    """x -> y = x, 64 values: the activation is the sample."""
    return Model.from_proto(build([helper.make_node("Identity", ["x"], ["y"])], [("x", [1, 64])], [("y", [1, 64])]), "id")


def given(rows: Any) -> Samples:
    return Samples({"x": np.asarray(rows, dtype=np.float32)}, "a test", leading_axis={"x": True})


def test_extremes_are_those_of_numpy_and_chunks_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = synthetic(model, 6)
    ranges = extremes(model, samples)
    assert set(ranges) == {"x", "c1", "n1", "r1", "c2", "a2", "p", "f", "logits"}
    rows = [Reference(model, ["c1", "r1", "f"]).run(sample) for sample in samples]
    for name in ("c1", "r1", "f", "logits"):
        values = np.stack([row[name] for row in rows])
        assert ranges[name] == (float(values.min()), float(values.max()))
    assert ranges["x"] == (float(samples.arrays["x"].min()), float(samples.arrays["x"].max()))
    for budget in (1, 10_000):
        monkeypatch.setattr(module, "BUDGET_BYTES", budget)
        assert extremes(model, samples) == ranges
        assert observe(model, samples, method="mse") == observe(model, samples, method="mse")


def test_minmax_is_what_onnx_runtime_finds(model: Model, tmp_path: Path) -> None:
    samples = synthetic(model, 5)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> Any:
            return next(self.rest, None)

    model.save(tmp_path / "m.onnx")
    theirs = MinMaxCalibrater(tmp_path / "m.onnx", augmented_model_path=str(tmp_path / "a.onnx"))
    theirs.augment_graph()
    theirs.create_inference_session()
    theirs.collect_data(Reader())
    found = theirs.compute_data()
    ours = extremes(model, samples)
    seen = [name for name in ours if name in found.data]
    assert len(seen) >= 7
    for name in seen:
        low, high = (float(np.asarray(v).reshape(-1)[0]) for v in found[name].range_value)
        assert ours[name] == pytest.approx((low, high), rel=1e-5, abs=1e-6)


def test_ranges_contain_zero(identity: Model) -> None:
    rows = np.linspace(2, 3, 64)[None]
    assert observe(identity, given(rows))["y"] == (0.0, 3.0)
    assert observe(identity, given(-rows))["y"] == (-3.0, 0.0)
    assert observe(identity, given(-rows), symmetric=True)["y"] == (-3.0, 3.0)
    assert extremes(identity, given(rows))["y"] == (2.0, 3.0)


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_a_constant_tensor_has_a_range(identity: Model, method: Any) -> None:
    assert observe(identity, given(np.zeros((3, 64))), method=method)["y"] == (0.0, 0.0)
    assert observe(identity, given(np.full((3, 64), 2.0)), method=method)["y"] == (0.0, 2.0)


def test_percentile_is_numpys_to_a_bin(identity: Model) -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 64))
    width = (rows.max() - rows.min()) / module.BINS
    for percentile in (99.0, 99.9):
        low, high = observe(identity, given(rows), method="percentile", percentile=percentile)["y"]
        tail = (100 - percentile) / 2
        assert low == pytest.approx(np.percentile(rows, tail), abs=2 * width)
        assert high == pytest.approx(np.percentile(rows, 100 - tail), abs=2 * width)


@pytest.mark.parametrize(("bits", "spread"), [(4, "normal"), (8, "outlier"), (4, "one-sided"), (6, "outlier")])
def test_mse_is_within_a_few_percent_of_the_best_clip(identity: Model, bits: int, spread: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((100, 64)).astype(np.float32)
    if spread == "outlier":
        rows[::10, 0] *= 20
    if spread == "one-sided":
        rows = np.abs(rows)
    low, high = observe(identity, given(rows), method="mse", bits=bits)["y"]

    def error(first: float, last: float) -> float:
        step = (last - first) / (2**bits - 1)
        zero = round(-first / step)
        codes = np.clip(np.round(rows / step) + zero, 0, 2**bits - 1)
        return float(((codes - zero) * step - rows).astype(np.float64).__pow__(2).mean())

    shares = np.linspace(0.05, 1, 60)
    bottom, top = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    best = min(error(bottom * a, top * b) for a in (shares if bottom < 0 else [1.0]) for b in shares)
    assert error(low, high) <= 1.10 * best
    if spread != "outlier":
        assert error(low, high) < error(bottom, top)


def test_entropy_cuts_a_long_tail_and_leaves_a_block_alone(identity: Model) -> None:
    rng = np.random.default_rng(0)
    tail = rng.exponential(1, (200, 64))
    tail[0, 0] = 100.0
    low, high = observe(identity, given(tail), method="entropy")["y"]
    assert low == 0.0 and high < 50
    block = rng.uniform(0, 1, (200, 64))
    assert observe(identity, given(block), method="entropy")["y"][1] > 0.9


def test_entropy_keeps_what_a_clipped_relu_gives(identity: Model) -> None:
    """Mostly zeros, some at the upper limit: both have a code of their own, and are no reason to clip what lies between."""
    rows = np.clip(np.random.default_rng(0).normal(-4, 4, (200, 64)), 0, 6)
    low, high = observe(identity, given(rows), method="entropy")["y"]
    assert low == 0.0 and high > 5


def test_memory_does_not_grow_with_the_samples(model: Model) -> None:
    def peak(count: int) -> int:
        one = next(iter(synthetic(model, 1)))["x"]
        many = Samples({"x": np.broadcast_to(one, (count, *one.shape[1:]))}, "a test", leading_axis={"x": True})
        tracemalloc.start()
        observe_twice = [module._values(model, many, ["c1", "r1"], lambda m: None)]
        for stream in observe_twice:
            for _ in stream:
                pass
        counts = module._histograms(model, many, ["c1"], {"c1": (-1.0, 1.0)}, lambda m: None)
        assert counts["c1"].sum() == count * 8 * 16 * 16
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)
    assert peak(1000) <= 1.2 * peak(20) + 20_000


def test_values_that_are_no_numbers_are_an_error(identity: Model) -> None:
    rows = np.ones((3, 64))
    rows[1, 5] = math.inf
    with pytest.raises(ModelError, match="NaN or infinite on a test"):
        observe(identity, given(rows))


def test_unknown_tensors_and_methods_are_named(identity: Model) -> None:
    with pytest.raises(ModelError, match="'nowhere' is no float tensor"):
        observe(identity, given(np.ones((1, 64))), ["nowhere"])
    with pytest.raises(ModelError, match="minmax, percentile"):
        observe(identity, given(np.ones((1, 64))), method="best")  # type: ignore[arg-type]


def test_the_cache_is_used_and_a_damaged_one_is_not(identity: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = given(np.random.default_rng(0).standard_normal((5, 64)))
    first = observe(identity, samples, cache=tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.json")
    with monkeypatch.context() as patch:
        patch.setattr(module, "Reference", None)  # whoever runs the model now fails
        assert observe(identity, samples, cache=tmp_path / "c") == first
    for damage in ("", "{}", '{"ranges": {"y": [1, 2]}}', '{"ranges": {"y": ["a", "b"]}}', json.dumps({"ranges": [1]})):
        file.write_text(damage)
        assert observe(identity, samples, cache=tmp_path / "c") == first
        assert json.loads(file.read_text())["ranges"].keys() == first.keys()
    observe(identity, given(np.zeros((5, 64))), cache=tmp_path / "c")
    observe(identity, samples, method="mse", cache=tmp_path / "c")
    observe(identity, samples, method="mse", bits=4, cache=tmp_path / "c")
    assert len(list((tmp_path / "c").iterdir())) == 4


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(identity: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert observe(identity, given(np.ones((1, 64))), cache=tmp_path / "file")["y"] == (0.0, 1.0)


def test_peaks_are_per_channel_and_outliers_stand_out(build: Any) -> None:
    source = Model.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], [("x", [1, 4, 3])], [("y", [1, 4, 3])]), "m")
    rows = np.ones((2, 4, 3), np.float32)
    rows[1, 2] = 30
    rows[0, 1] = -5
    peaks = channel_peaks(source, given(rows), ["x", "y"])
    assert peaks["x"].tolist() == [1, 5, 30, 1] and peaks["y"].tolist() == [1, 1, 30, 1]
    assert channel_peaks(source, given(rows), ["x"], axis=-1)["x"].tolist() == [30, 30, 30]
    assert outlier_channels(peaks["y"]) == [2] and outlier_channels(peaks["y"], factor=40) == []
    assert outlier_channels(np.zeros(4)) == []
