"""Data that an export cannot trust: one clear error, or one warning that stands in the report; and slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk.exporting import Prepared, prepare
from edgesdk_converters.errors import ContractBroken, EdgeError, ModelError

from ..fashion import samples
from .conftest import run_here

NET = Path(__file__).parents[2] / "examples" / "fashion" / "fashion_cnn.onnx"
Data = dict[str, Any]


@pytest.fixture(scope="module")
def check() -> Data:
    return samples("t10k", 0, 400)


@pytest.fixture(scope="module")
def train() -> Data:
    return samples("train", 0, 64)


def int8(check: Data, train: Data | None, **more: Any) -> Prepared:
    how: dict[str, Any] = {"max_drop": 5.0, "settings": {"quantize.repair": "false"}} | more
    return prepare(NET, target="server", precision="int8", data=check, train=train, **how)


def changed(data: Data, **arrays: Any) -> Data:
    return {**data, **arrays}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c, t: (c, changed(t, image=np.where(t["image"] > 2, np.nan, t["image"]))), "NaN"),
        (lambda c, t: (changed(c, image=np.where(c["image"] > 2, np.inf, c["image"])), t), "NaN or infinity"),
        (lambda c, t: (c, {"picture": t["image"]}), "the model's inputs are image"),
        (lambda c, t: (c, changed(t, image=t["image"][:, :, :27])), "wanted: (samples, 1, 28, 28)"),
        (lambda c, t: (changed(c, labels=c["labels"] + 10), t), "10 classes"),
        (lambda c, t: (changed(c, labels=c["labels"] - 1), t), "-1 to"),
        (lambda c, t: (changed(c, labels=c["labels"].astype(float)), t), "whole number"),
        (lambda c, t: (changed(c, labels=c["labels"][:50]), t), "rows"),
        (lambda c, t: (c, changed(t, image=np.concatenate([t["image"][:10], c["image"][:54]]))), "54 of the 400 samples"),
        (lambda c, t: (c, {"image": c["image"]}), "400 of the 400 samples"),
    ],
)  # fmt: skip
def test_bad_data_is_one_clear_error(
    spoil: Callable[[Data, Data], tuple[Data, Data]], told: str, check: Data, train: Data
) -> None:
    with pytest.raises(EdgeError) as caught:
        int8(*spoil(check, train))
    assert told in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda c, t: (c, {"image": t["image"][:3]}), "only 3 samples to calibrate"),
        (lambda c, t: (c, {"image": np.repeat(t["image"][:1], 20, axis=0)}), "is the same in all 20 samples"),
        (lambda c, t: (c, {"image": t["image"] * 60}), "are both preprocessed alike?"),
        (lambda c, t: (c, {"image": np.concatenate([t["image"], c["image"][:4]])}), "4 of the 400 samples in"),
    ],
)  # fmt: skip
def test_doubtful_data_is_one_warning_in_the_report(
    spoil: Callable[[Data, Data], tuple[Data, Data]], told: str, check: Data, train: Data
) -> None:
    made = int8(*spoil(check, train), max_drop=90.0)
    assert sum(told in note for note in made.report.notes) == 1


def test_pictures_that_occur_twice_never_fall_on_both_sides_of_a_split(check: Data) -> None:
    twice = {name: np.concatenate([rows, rows]) for name, rows in check.items()}
    made = int8(twice, None)
    (note,) = [note for note in made.report.notes if "split by seed 0" in note]
    assert "160 to check" in note and "left out as they are among those to check" in note


def test_good_data_has_no_warning(check: Data, train: Data) -> None:
    told = " ".join(int8(check, train).report.notes)
    assert not any(word in told for word in ("usual", "is the same in all", "preprocessed alike", "labels and preprocessing"))


def test_labels_that_the_source_itself_misses_are_doubted(check: Data, train: Data) -> None:
    wrong = changed(check, labels=(check["labels"] + 3) % 10)
    notes = int8(wrong, train, max_drop=90.0).report.notes
    assert sum("are labels and preprocessing right?" in note for note in notes) == 1


# --- slices -----------------------------------------------------------------------------------------


def test_each_slice_and_the_worst_are_in_the_report(check: Data, train: Data) -> None:
    slices = np.where(check["labels"] >= 5, "shoes and bags", "clothes")
    made = int8(changed(check, slice=slices), train)
    rows = {row.segment: row for row in made.report.rows if row.name == "retention"}
    assert set(rows) == {"slice clothes", "slice shoes and bags"}
    assert rows["slice clothes"].n == int((check["labels"] < 5).sum())
    worst = made.report.find("worst_slice_retention")
    assert worst is not None and worst.value == min(row.value for row in rows.values() if row.value is not None)
    assert all(row.value is not None and 0.8 <= row.value <= 1.2 for row in rows.values())


def test_a_slice_that_loses_too_much_breaks_the_contract(check: Data, train: Data) -> None:
    """Calibrated on dim images alone, the ranges cut off what usual ones need."""
    dim = {"image": train["image"] * 0.25}
    picture = check["image"].copy()
    picture[:200] *= 0.25
    data = {"image": picture, "labels": check["labels"], "slice": np.repeat(["dim", "usual"], 200)}
    with pytest.raises(ContractBroken, match=r"slice 'usual' drops .* promised: at most 2") as caught:
        int8(data, dim, max_drop=90.0, max_slice_drop=2.0)
    assert "n=200" in caught.value.message
    made = int8(data, dim, max_drop=90.0, max_slice_drop=90.0)
    assert "the worst of 2 slices, 'usual'" in made.report.contract.text


@pytest.mark.parametrize(
    ("slices", "how", "told"),
    [
        (None, {"max_slice_drop": 2.0}, "have no slices"),
        (np.repeat(["a", "b"], [395, 5]), {"max_slice_drop": 2.0}, "slice 'b' has 5 check samples"),
        (np.repeat(["a", "b"], 200), {"max_slice_drop": -1.0}, "--max-slice-drop is -1"),
    ],
)
def test_promises_about_slices_that_cannot_be_kept(slices: Any, how: Data, told: str, check: Data, train: Data) -> None:
    data = check if slices is None else changed(check, slice=slices)
    with pytest.raises(ModelError, match=told):
        int8(data, train, **how)


def test_slices_from_the_command_line(check: Data, train: Data, tmp_path: Path) -> None:
    np.savez(tmp_path / "check.npz", **check, slice=check["labels"] % 2)
    np.savez(tmp_path / "train.npz", **train)
    done = run_here(
        f"export {NET} --target server --precision int8 --data check.npz --train train.npz --max-drop 5 --max-slice-drop 5 "
        "--out a.edge", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "slice 0" in done.out and "worst_slice_retention" in done.out and "promised at most 5" in done.out
    (tmp_path / "edgesdk.toml").write_text(f'model = "{NET}"\ndata = "check.npz"\ntrain = "train.npz"\nmax_slice_drop = 0.1\n')
    done = run_here("export --target server --precision int8 --out b.edge", tmp_path)
    assert done.code == 1 and "slice '" in done.error["message"]
