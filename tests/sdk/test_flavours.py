"""Every flavour of integers through the whole export, on every CPU target; which one a core gets; a Jetson's, of real models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from edgesdk import ranking
from edgesdk.exporting import Prepared, prepare
from edgesdk_converters.errors import ToolError
from edgesdk_converters.model import Model
from edgesdk_targets import emulate, golden
from edgesdk_targets.jetson_quantisation import audit, violations

from ..fashion import samples
from .test_real_models import CONSTANTS, MODELS, QUICK, SHAPES, data_of, example

NETS = Path(__file__).parents[2] / "examples" / "fashion"
FLAVOURS = {
    "u8s8": ("int8", {"flavour": "u8s8"}),
    "u8s8 of 7 bits": ("int8", {"flavour": "u8s8", "reduce_range": "true"}),
    "s8s8": ("int8", {"flavour": "s8s8"}),
    "qoperator": ("int8", {"flavour": "qoperator"}),
    "fixed": ("int8", {"flavour": "fixed"}),
    "fixed of 12 bits": ("int8", {"flavour": "fixed", "bits": "12"}),
    "weights": ("w8", {"flavour": "weights"}),
    "stored": ("w8", {"flavour": "stored"}),
    "stored in 5 bits": ("w8", {"flavour": "stored", "bits": "5"}),
}


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return {"data": samples("t10k", 0, 200), "train": samples("train", 0, 64)}


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


@pytest.mark.parametrize("target", ["server", "raspberry-pi"])
@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("net", ["cnn", "mobilenet"])
def test_every_flavour_runs_where_it_is_for(net: str, flavour: str, target: str, data: dict[str, Any]) -> None:
    if (net, flavour) == ("mobilenet", "u8s8") and target == "server":
        data = data | {"max_drop": 5.0}  # a CPU without VNNI saturates
    precision, options = FLAVOURS[flavour]
    settings = {f"quantize.{key}": value for key, value in options.items()} | {"quantize.repair": "false"}
    path = NETS / f"fashion_{net}.onnx"
    made = prepare(path, target=target, precision=precision, settings=settings, **({"max_drop": 2.0} | data))
    assert made.report.contract.status == "passed"
    assert len(made.files["model.onnx"]) < 0.62 * path.stat().st_size


@pytest.mark.parametrize("name", QUICK)
def test_the_integers_of_real_models_break_no_rule_of_tensorrt(real_models: ModuleType, name: str) -> None:
    made = prepare(
        MODELS / f"{name}.onnx", device="jetson-orin-nano", precision="int8", shapes=SHAPES.get(name),
        constants=CONSTANTS.get(name), train=data_of(real_models, name), max_relative_error=2.0,
        settings={"quantize.repair": "false"},
    )  # fmt: skip
    shipped = Model.from_proto(onnx.load_from_string(made.files["model.onnx"]), name)
    assert violations(shipped) == []
    assert audit(shipped)["int8"] > audit(shipped)["float"]


# --- which flavour a core gets ----------------------------------------------------------------------

Counts = Mapping[str, Mapping[str, int]]
"""Instructions by kind, by the last pass or its flavour."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Counts], None]:
    """An emulator that is set up, and that gives bundles the instructions that a test says."""

    def pretend(counts: Counts) -> None:
        def count(bundle: Any, profile: Any, **_: Any) -> emulate.Count:
            last = bundle.manifest.recipe["whole"][-1]
            flavour = last.get("flavour", {"quantize": "u8s8"}.get(last["pass"], last["pass"]))
            if flavour not in counts:
                raise ToolError(emulate.QEMU, "the emulated program ended with SIGSEGV")
            by_class = {kind: counts[flavour].get(kind, 0) for kind in emulate.CLASSES}
            total, same = sum(by_class.values()), golden.Comparison(0.0, 0.0, 0.0, 3, 0.05)
            return emulate.Count(total, by_class, (total,), 0, f"emulated {profile.get('cpu', str)}", "pretended", same)

        monkeypatch.setattr(emulate, "obstacle", lambda profile: "")
        monkeypatch.setattr(emulate, "count", count)

    return pretend


def chosen(
    data: Mapping[str, Any], *, precision: str = "int8", device: str = "raspberry-pi-4", on: str | None = None
) -> Prepared:
    return prepare(NETS / "fashion_cnn.onnx", device=device, precision=precision, on=on, max_drop=2.0, **data)


def story(made: Prepared) -> tuple[list[str], str]:
    """The names of the candidates that were kept, and the notes."""
    return [row["name"] for row in made.report.candidates if row["status"] == "kept"], " ".join(made.report.notes)


def test_the_flavour_with_the_fewest_instructions_is_kept(data: dict[str, Any], counted: Callable[[Counts], None]) -> None:
    counted({"fold": {"neon": 4_000_000}, "s8s8": {"neon": 2_060_000}, "u8s8": {"neon": 1_000_000, "integer": 1_000_000}})
    made = chosen(data)
    names, notes = story(made)
    assert names == ["int8 u8s8"], "3 % fewer, where another precision would need 5 %"
    told = "int8 u8s8 takes 0.971x the instructions of int8 on emulated Cortex-A72"
    assert f"{told}: a close call, as the order turns where some kinds of instructions take twice as long as others" in notes
    rows = {row["name"]: row for row in made.report.candidates}
    assert rows["int8"]["why"] == "1.030x the instructions of int8 u8s8" and rows["int8"]["provenance"] == "emulated"
    assert rows["int8 u8s8"]["where"] == "emulated Cortex-A72"
    emulated = [row for row in made.report.rows if row.provenance == "emulated"]
    assert {row.name for row in emulated} == {"instruction_ratio", "instructions"}, "never a time"


def test_counts_that_repeats_may_turn_leave_the_targets_order(data: dict[str, Any], counted: Callable[[Counts], None]) -> None:
    counted({"fold": {"neon": 4_000_000}, "s8s8": {"neon": 2_010_000}, "u8s8": {"neon": 2_000_000}})
    made = chosen(data)
    names, notes = story(made)
    assert names == ["int8"] and "int8 takes 1.005x the instructions of int8 u8s8 on emulated Cortex-A72" in notes
    rows = {row["name"]: row for row in made.report.candidates}
    assert rows["int8 u8s8"]["why"] == "0.995x the instructions of int8, which comes first"


def test_another_precision_must_save_more(data: dict[str, Any], counted: Callable[[Counts], None]) -> None:
    least = {"neon": 3_900_000}
    counted(
        {
            "fold": {"neon": 4_000_000},
            "half": {"neon": 4_000_000},
            "s8s8": least,
            "u8s8": least,
            "weights": least,
            "stored": least,
        }
    )
    made = chosen(data, precision="auto")
    names, notes = story(made)
    assert names == ["fp32"] and "whichever" not in notes and "close call" not in notes


@pytest.mark.parametrize(
    ("fewer", "more", "stays"),
    [
        ({"neon": 8, "memory": 4}, {"neon": 10, "memory": 4}, True),
        ({"neon": 8, "memory": 5}, {"neon": 10, "memory": 4}, False),  # by no more than is saved: equal at 1 and 2
        ({"neon": 8, "memory": 5}, {"neon": 11, "memory": 4}, True),
        ({"neon": 8, "memory": 6}, {"neon": 11, "memory": 4}, False),
        ({"neon": 8}, {"neon": 8}, False),
    ],
)
def test_an_order_stays_at_every_weight_from_one_to_two(fewer: dict[str, int], more: dict[str, int], stays: bool) -> None:
    grid = (1.0, 1.5, 2.0)
    every = all(
        sum(w[k] * (fewer[k] - more[k]) for k in fewer) < 0 for a in grid for b in grid for w in [{"neon": a, "memory": b}]
    )
    assert ranking.order_stays(fewer, more) is stays is every


@pytest.mark.parametrize(
    ("device", "obstacle"),
    [
        ("raspberry-pi-4", "the emulator needs qemu-aarch64 (sudo apt-get install qemu-user)"),
        ("raspberry-pi-5", "the emulator's arm64 system is not made yet (--on emulator makes it)"),
    ],
)
def test_without_an_emulator_the_report_says_why_and_what_was_not_told_apart(
    data: dict[str, Any], device: str, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulate, "obstacle", lambda profile: obstacle)
    made = chosen(data, device=device)
    names, notes = story(made)
    assert (
        names == ["int8"]
        and f"no instructions were counted: {obstacle}; speeds are estimates, which do not tell int8 from " in notes
    )
    rows = {row["name"]: row for row in made.report.candidates}
    assert rows["int8 u8s8"]["why"] == "the estimate does not tell it from int8, which comes first"
    assert {row["provenance"] for row in rows.values()} == {"estimated"}


def test_an_emulator_that_fails_leaves_estimates_and_says_so(data: dict[str, Any], counted: Callable[[Counts], None]) -> None:
    counted({"fold": {"neon": 4_000_000}, "s8s8": {"neon": 2_000_000}})  # and none for u8s8: it crashes
    made = chosen(data)
    names, notes = story(made)
    assert names == ["int8"]
    assert "no instructions were counted: qemu-aarch64: the emulated program ended with SIGSEGV; speeds are estimates" in notes
    assert {row["provenance"] for row in made.report.candidates} == {"estimated"}
    assert not [row for row in made.report.rows if row.provenance == "emulated"]


def test_an_emulator_that_was_asked_for_and_cannot_be_set_up_is_an_error(
    data: dict[str, Any], counted: Callable[[Counts], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted({})
    monkeypatch.setattr(emulate, "obstacle", lambda profile: "the emulator's arm64 system is not made yet")
    with pytest.raises(ToolError, match="ended with SIGSEGV"):
        chosen(data, on="emulator")


@pytest.mark.parametrize("split", [None, "auto"])
def test_an_emulator_that_was_asked_for_and_fails_is_an_error_set_up_or_not(
    data: dict[str, Any], counted: Callable[[Counts], None], split: str | None
) -> None:
    counted({"fold": {"neon": 4_000_000}} if split is None else {})
    with pytest.raises(ToolError, match="ended with SIGSEGV"):
        prepare(
            NETS / "fashion_cnn.onnx", device="raspberry-pi-4", precision="int8", on="emulator", split=split, max_drop=2.0, **data
        )


def test_for_a_jetson_no_emulator_is_missed(data: dict[str, Any]) -> None:
    made = chosen(data, device="jetson-orin-nano", precision="auto")
    assert "instructions" not in story(made)[1]
