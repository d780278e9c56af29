"""Samples, random inputs and activation ranges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgesdk_converters.calibration import Samples, split, synthetic
from edgesdk_converters.errors import ModelError
from edgesdk_converters.model import Model
from edgesdk_converters.reference import Reference
from edgesdk_converters.signature import Input, Output, Preprocess, Processing, Signature

F = np.float32
SIGNATURE = Signature((Input("x", "float32", (1, 3, 4)), Input("ids", "int64", ("n", 5))), (Output("y", "float32", (1, 10)),))


def data(n: int = 6, **changed: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((n, 3, 4)).astype(F), "ids": rng.integers(0, 9, (n, 5)), **changed}
    return {name: array for name, array in arrays.items() if array is not None}


def test_samples_are_rows_with_the_leading_axis_restored() -> None:
    labels = np.arange(6, dtype=np.uint8)
    samples = Samples.from_arrays(data(labels=labels, slice=np.array(list("aabbcc"))), SIGNATURE, "d")
    assert len(samples) == 6
    rows = list(samples)
    assert rows[2]["x"].shape == (1, 3, 4)
    assert rows[2]["ids"].shape == (1, 5)
    assert np.array_equal(rows[2]["x"][0], data()["x"][2])
    assert samples.labels is not None and samples.labels.dtype == np.int64
    taken = samples.take([4, 1])
    assert taken.labels is not None and taken.labels.tolist() == [4, 1]
    assert taken.slices is not None and taken.slices.tolist() == ["c", "a"]
    assert np.array_equal(next(iter(taken))["ids"], rows[4]["ids"])


def test_inputs_without_a_batch_axis_and_scalars_are_rows_too() -> None:
    signature = Signature((Input("a", "float32", (4,)), Input("s", "float32", ())), (Output("y", "float32", (4,)),))
    samples = Samples.from_arrays({"a": np.ones((3, 4), F), "s": np.arange(3, dtype=F)}, signature, "d")
    assert [(row["a"].shape, row["s"].shape, float(row["s"])) for row in samples] == [((4,), (), 0), ((4,), (), 1), ((4,), (), 2)]


def test_whole_leading_axes_are_accepted_as_they_are() -> None:
    samples = Samples.from_arrays(data(x=np.zeros((6, 1, 3, 4), F)), SIGNATURE, "d")
    assert next(iter(samples))["x"].shape == (1, 3, 4)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": None}, "d: has ids; the model's inputs are x, ids"),
        ({"z": np.zeros(6)}, "has ids, x, z; the model's inputs are x, ids"),
        ({"x": np.zeros((5, 3, 4), F)}, r"array 'ids' has shape \(6, 5\); needed: 5 rows"),
        ({"labels": np.zeros(5, int)}, "array 'labels' has shape"),
        ({"slice": np.zeros(7)}, "array 'slice' has shape"),
        ({"slice": np.array(3)}, "array 'slice' has shape"),
        ({"x": np.zeros((6, 3, 5), F)}, r"'x' has shape \(6, 3, 5\); wanted: \(samples, 3, 4\)"),
        ({"x": np.zeros((6, 3), F)}, r"wanted: \(samples, 3, 4\)"),
        ({"x": np.zeros((6, 3, 4), int)}, "'x' has dtype int64; the model wants float32"),
        ({"ids": np.zeros((6, 5))}, "'ids' has dtype float64; the model wants int64"),
        ({"x": np.zeros((6, 3, 4), "U3")}, "has dtype <U3"),
        ({"ids": np.full((6, 5), 2**63, np.uint64)}, "do not fit into int64"),
        ({"x": np.full((6, 3, 4), 1e300)}, "reach 1e.300, beyond float32"),
        ({"labels": np.zeros((6, 1), int)}, "labels must be one whole number a sample"),
        ({"labels": np.zeros(6)}, "labels must be one whole number"),
        ({"labels": np.array([0, 1, 2, 3, 4, 10])}, "labels run from 0 to 10; the model has 10 classes"),
        ({"labels": np.array([0, 1, 2, 3, 4, -1])}, "labels run from -1 to 4"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Samples.from_arrays(data(**changed), SIGNATURE, "d")


def test_nan_is_found_in_its_sample() -> None:
    x = np.zeros((6, 3, 4), F)
    x[3, 1, 1] = np.nan
    with pytest.raises(ModelError, match="first in sample 3"):
        Samples.from_arrays(data(x=x), SIGNATURE, "d")


def test_no_samples_and_types_that_numpy_lacks_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 1"):
        Samples.from_arrays(data(0), SIGNATURE, "d")
    signature = Signature((Input("s", "string", (2,)),), SIGNATURE.outputs)
    with pytest.raises(ModelError, match="has type string, which numpy lacks"):
        Samples.from_arrays({"s": np.zeros((3, 2))}, signature, "d")


def test_double_precision_is_rounded_and_counted_as_the_models_type() -> None:
    samples = Samples.from_arrays(data(x=np.full((6, 3, 4), 0.1)), SIGNATURE, "d")
    assert samples.arrays["x"].dtype == np.float32


def test_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **data())
    samples = Samples.load(tmp_path / "d.npz", SIGNATURE)
    assert (len(samples), samples.origin) == (6, "d.npz")
    for name, content in {"text.npz": b"text", "empty.npz": b"", "zip.npz": b"PK\x03\x04 cut"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=r"is no \.npz file"):
            Samples.load(tmp_path / name, SIGNATURE)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ModelError, match=r"is no \.npz file"):
        Samples.load(tmp_path / "one.npy", SIGNATURE)
    np.savez(tmp_path / "pickle.npz", **data(slice=np.array([{}] * 6, dtype=object)))
    with pytest.raises(ModelError, match="plain arrays"):
        Samples.load(tmp_path / "pickle.npz", SIGNATURE)
    with pytest.raises(ModelError, match="cannot be read"):
        Samples.load(tmp_path / "absent.npz", SIGNATURE)


def test_a_file_of_another_kind_is_named_without_advice_to_trust_it(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x07edgesdk")
    np.savez(tmp_path / "objects.npz", **data(slice=np.array([{}] * 6, dtype=object)))
    for name, told in {
        "net.onnx": "it is no archive, and a .onnx file by its name",
        "objects.npz": "it holds Python objects",
    }.items():
        with pytest.raises(ModelError) as caught:
            Samples.load(tmp_path / name, SIGNATURE)
        assert caught.value.message == f"{tmp_path / name} is no .npz file of plain arrays: {told}"


def test_a_digest_is_that_of_the_data() -> None:
    samples = Samples.from_arrays(data(), SIGNATURE, "d")
    assert samples.digest() == Samples.from_arrays(data(), SIGNATURE, "other").digest()
    changed = data()
    changed["ids"][0, 0] += 1
    assert samples.digest() != Samples.from_arrays(changed, SIGNATURE, "d").digest()
    assert samples.digest() != Samples.from_arrays(data(labels=np.arange(6)), SIGNATURE, "d").digest()


def test_a_split_is_eighty_twenty_disjoint_seeded_and_complete() -> None:
    samples = Samples({"x": np.arange(50, dtype=F)}, "d", np.arange(50) % 10)
    train, check = split(samples)
    assert (len(train), len(check)) == (40, 10)
    assert sorted([*train.arrays["x"], *check.arrays["x"]]) == list(range(50))
    assert check.labels is not None and np.array_equal(check.labels, check.arrays["x"] % 10)
    assert np.array_equal(split(samples)[1].arrays["x"], check.arrays["x"])
    assert not np.array_equal(split(samples, seed=1)[1].arrays["x"], check.arrays["x"])
    assert [len(part) for part in split(samples, check_fraction=0.5)] == [25, 25]


# --- synthetic inputs --------------------------------------------------------------------------------


def test_synthetic_inputs_are_seeded_and_of_the_models_shapes(build: Any) -> None:
    inputs = [("x", ["n", 3]), ("h", [2, 2], TensorProto.FLOAT16), ("b", [1, 4], TensorProto.BOOL), ("k", [], TensorProto.INT32)]
    nodes = [helper.make_node("Identity", [name], [f"{name}_y"]) for name, *_ in inputs]
    model = Model.from_proto(build(nodes, inputs, [(f"{n}_y", *rest) for n, *rest in inputs]), "m")
    samples = synthetic(model, 5)
    assert len(samples) == 5
    row = next(iter(samples))
    assert {name: (array.shape, str(array.dtype)) for name, array in row.items()} == {
        "x": ((1, 3), "float32"), "h": ((2, 2), "float16"), "b": ((1, 4), "bool"), "k": ((), "int32"),
    }  # fmt: skip
    assert synthetic(model, 5).digest() == samples.digest()
    assert synthetic(model, 5, seed=1).digest() != samples.digest()
    Reference(model).run(row)
    assert len(synthetic(Model.from_proto(build([nodes[0]], [("x", [2])], [("x_y", [2])]), "m"), 3)) == 3


def test_indices_stay_inside_the_smallest_table_they_index(build: Any) -> None:
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["a"]),
        helper.make_node("Gather", ["few", "ids"], ["b"]),
        helper.make_node("Cast", ["far"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["columns", "wide"], ["c"], axis=1),
    ]
    weights = {"words": np.zeros((1000, 4), F), "few": np.zeros((7, 4), F), "columns": np.zeros((3, 50), F)}
    proto = build(nodes, [("ids", [1, 200], TensorProto.INT64), ("far", [400], TensorProto.INT32)],
                  [("a", None), ("b", None), ("c", None)], weights)  # fmt: skip
    model = Model.from_proto(proto, "m")
    samples = synthetic(model, 2)
    assert (samples.arrays["ids"].min(), samples.arrays["ids"].max()) == (0, 6)
    assert (samples.arrays["far"].min(), samples.arrays["far"].max()) == (0, 49)
    for sample in samples:
        Reference(model).run(sample)


@pytest.mark.parametrize(("elem_type", "top"), [(TensorProto.FLOAT, 1.0), (TensorProto.UINT8, 255)])
def test_images_go_through_the_models_own_preprocessing(build: Any, elem_type: int, top: float) -> None:
    pre = Preprocess("NCHW", scale=1 / 255 if elem_type == TensorProto.FLOAT else 1.0)
    proto = build(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", [1, 3, 16, 16], elem_type)], [("y", [1, 3, 16, 16], elem_type)]
    )
    samples = synthetic(Model.from_proto(proto, "m", processing=Processing({"x": pre})), 4)
    assert (samples.arrays["x"].min(), samples.arrays["x"].max()) == (0, pytest.approx(top))
    assert len(np.unique(samples.arrays["x"])) > 200


def test_types_without_random_values_are_refused(build: Any) -> None:
    for elem_type in (TensorProto.STRING, TensorProto.COMPLEX64):
        proto = build([helper.make_node("Identity", ["x"], ["y"])], [("x", [2], elem_type)], [("y", [2], elem_type)])
        with pytest.raises(ModelError, match="input 'x' has type"):
            synthetic(Model.from_proto(proto, "m"), 1)
