"""Golden vectors: whatever a model answers is kept and compared, NaN and text included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk_converters.errors import BundleError
from edgesdk_converters.signature import Input, Output, Signature
from edgesdk_targets import bundle as bundles
from edgesdk_targets import golden
from edgesdk_targets.bundle import Bundle, Manifest, open_bundle, write

Arrays = Mapping[str, np.ndarray]


class Answers:
    """A runner that answers from a list."""

    def __init__(self, answers: Sequence[Arrays]) -> None:
        self.answers = iter(answers)

    def run(self, feed: Arrays) -> list[np.ndarray]:
        return list(next(self.answers).values())


def bundle_with(
    path: Path,
    manifest: Manifest,
    inputs: list[Arrays],
    outputs: list[Arrays],
    source: list[Arrays] | None = None,
    precision: str = "fp32",
) -> Bundle:
    entry, files = golden.make(inputs, outputs, source or outputs, precision=precision, runtime="r", origin="o")
    signature = Signature(
        tuple(Input(n, str(a.dtype), a.shape) for n, a in inputs[0].items()),
        tuple(Output(n, str(a.dtype), a.shape) for n, a in outputs[0].items()),
    )
    return write(path, replace(manifest, golden=entry, signature=signature), {"model.bin": b"m", **files})


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "int8", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(1, 3), (), (0,), (2, 1, 2)])
def test_arrays_of_every_type_and_shape_come_back_bit_for_bit(
    tmp_path: Path, plain_manifest: Manifest, dtype: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    cases = [{"y": (rng.standard_normal(shape) * 3).astype(dtype), "z": np.full(shape, i).astype(dtype)} for i in range(3)]
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, cases, cases)
    for group in ("inputs", "outputs", "source_outputs"):
        back = golden.load(open_bundle(bundle.path), group)
        assert len(back) == 3
        for got, wanted in zip(back, cases, strict=True):
            assert list(got) == ["y", "z"]
            for name in wanted:
                assert got[name].dtype == wanted[name].dtype
                assert got[name].shape == shape
                assert np.array_equal(got[name], wanted[name])
    result = golden.compare(bundle, Answers(cases))
    assert result == golden.Comparison(0.0, 0.0, 0.0, 3, 1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 1e-2), ("int8", 5e-2), ("other", 1e-2)])
def test_the_tolerance_follows_the_precision_and_decides(
    tmp_path: Path, plain_manifest: Manifest, precision: str, tolerance: float
) -> None:
    y = np.array([[1.0, 100.0]])
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [{"x": y}], [{"y": y}], precision=precision)
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.tolerance == tolerance
    for factor, holds in ((0.9, True), (1.1, False)):
        result = golden.compare(bundle, Answers([{"y": y + np.array([[100.0 * tolerance * factor, 0.0]])}]))
        assert result is not None
        assert result.artifact_relative_error == pytest.approx(tolerance * factor)
        assert result.holds is holds


def test_errors_against_artefact_and_source_are_kept_apart(tmp_path: Path, plain_manifest: Manifest) -> None:
    artefact, source = np.array([2.0, 4.0]), np.array([2.0, 5.0])
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [{"x": source}], [{"y": artefact}], [{"y": source}])
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.source_error == 0.2
    result = golden.compare(bundle, Answers([{"y": artefact}]))
    assert result == golden.Comparison(0.0, 0.2, 1.0, 1, 1e-4)


def test_the_worst_case_and_the_worst_output_count(tmp_path: Path, plain_manifest: Manifest) -> None:
    one = {"a": np.array([1.0]), "b": np.array([10.0])}
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [one, one], [one, one])
    off = {"a": np.array([1.0]), "b": np.array([15.0])}
    for answers in ([one, off], [off, one]):
        result = golden.compare(bundle, Answers(answers))
        assert result is not None
        assert result.artifact_relative_error == 0.5
        assert result.source_abs_error == 5.0
        assert not result.holds


def test_nan_and_infinity_are_right_only_where_they_were(tmp_path: Path, plain_manifest: Manifest) -> None:
    y = np.array([np.nan, np.inf, -np.inf, 1.0])
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [{"x": y}], [{"y": y}])
    assert golden.compare(bundle, Answers([{"y": y.copy()}])).holds  # type: ignore[union-attr]
    for bad in ([0, np.inf, -np.inf, 1], [np.nan, np.inf, np.inf, 1], [np.nan, 1, -np.inf, 1], [np.nan, np.inf, -np.inf, np.nan]):
        result = golden.compare(bundle, Answers([{"y": np.array(bad, float)}]))
        assert result is not None
        assert not result.holds


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        (np.array([True, False]), np.array([True, True])),
        (np.array([3, 4]), np.array([3, 5])),
        (np.array([1.0]), np.array([[1.0]])),
    ],
)
def test_a_wrong_truth_value_index_or_shape_does_not_hold(
    tmp_path: Path, plain_manifest: Manifest, wanted: np.ndarray, got: np.ndarray
) -> None:
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [{"x": wanted}], [{"y": wanted}])
    assert golden.compare(bundle, Answers([{"y": wanted}])).holds  # type: ignore[union-attr]
    assert not golden.compare(bundle, Answers([{"y": got}])).holds  # type: ignore[union-attr]


def test_text_outputs_are_kept_and_compared(tmp_path: Path, plain_manifest: Manifest) -> None:
    y = np.array(["cat", "dog ñ"], dtype=object)
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [{"x": np.zeros(1)}], [{"y": y}])
    assert golden.load(bundle, "outputs")[0]["y"].tolist() == ["cat", "dog ñ"]
    assert golden.compare(bundle, Answers([{"y": y}])).holds  # type: ignore[union-attr]
    assert not golden.compare(bundle, Answers([{"y": np.array(["cat", "cow"], dtype=object)}])).holds  # type: ignore[union-attr]


def test_an_error_that_is_not_finite_is_written_as_none(tmp_path: Path, plain_manifest: Manifest) -> None:
    zero, one = np.zeros(2), np.ones(2)
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, [{"x": one}], [{"y": one}], [{"y": zero}])
    opened = open_bundle(bundle.path)
    assert opened.manifest.golden is not None
    assert opened.manifest.golden.source_error is None


def test_cases_of_another_shape_than_the_first_are_left_out(tmp_path: Path, plain_manifest: Manifest) -> None:
    cases = [{"y": np.ones(length)} for length in (2, 3, 2, 0)]
    inputs = [{"x": np.full(4, i)} for i in range(4)]
    bundle = bundle_with(tmp_path / "a.edge", plain_manifest, inputs, cases)
    assert bundle.manifest.golden is not None
    assert bundle.manifest.golden.cases == 2
    assert [case["x"][0] for case in golden.load(bundle, "inputs")] == [0, 2]


def test_a_bundle_without_golden_vectors_compares_to_nothing(tmp_path: Path, plain_manifest: Manifest) -> None:
    bundle = write(tmp_path / "a.edge", plain_manifest, {"model.bin": b""})
    assert golden.load(bundle, "inputs") == []
    assert golden.compare(bundle, Answers([])) is None


def test_a_golden_file_that_is_no_array_or_has_other_cases_is_refused(tmp_path: Path, plain_manifest: Manifest) -> None:
    y = [{"y": np.ones(2)}]
    entry, files = golden.make(y, y, y, precision="fp32", runtime="r", origin="o")
    manifest = replace(plain_manifest, golden=entry)
    pickled = b"\x80\x04N."
    for bad in (b"", b"nonsense", files["golden/inputs/0.npy"][:40], pickled):
        bundle = write(tmp_path / "a.edge", manifest, {"model.bin": b"", **files, "golden/inputs/0.npy": bad})
        with pytest.raises(BundleError, match="is no array"):
            golden.load(bundle, "inputs")
    bundle = write(tmp_path / "a.edge", replace(manifest, golden=replace(entry, cases=7)), {"model.bin": b"", **files})
    with pytest.raises(BundleError, match="has not 7 cases"):
        golden.load(bundle, "inputs")


def test_two_makings_give_the_same_bytes_however_the_arrays_lie_in_memory() -> None:
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    forms: list[Any] = [a, np.asfortranarray(a), np.arange(24, dtype=np.float32).reshape(3, 8)[:, ::2] / 2]
    made = [golden.make([{"x": f}], [{"y": f}], [{"y": f}], precision="fp32", runtime="r", origin="o")[1] for f in forms]
    assert made[0] == made[1] == made[2]
    assert bundles._NAME.fullmatch(next(iter(made[0])))
