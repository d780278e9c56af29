"""Networks as text: what the form means, and that everything else is refused with the form shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk_converters.errors import RecipeError
from edgesdk_targets.fpga.dense_spec import FORM, LARGEST, WIDEST_BITS, check_settings, parse


def test_layers_and_activations_in_order() -> None:
    found = parse("dense:16-64-32-5@8bit")
    assert [(layer.kind, layer.n_in, layer.n_out) for layer in found] == [
        ("dense", 16, 64), ("activation", 64, 64), ("dense", 64, 32), ("activation", 32, 32), ("dense", 32, 5),
    ]  # fmt: skip
    assert {layer.weight_bits for layer in found if layer.weighted} == {8}
    assert len({layer.name for layer in found}) == 5


def test_relu_behind_the_last_layer_on_request() -> None:
    assert parse("dense:4-3@6bit,relu")[-1].kind == "activation"
    assert [layer.kind for layer in parse("dense:4-3@6bit")] == ["dense"]


def test_spelling_is_forgiven_where_it_is_clear() -> None:
    assert parse("  DENSE:4-3@6bits ") == parse("dense:4-3@6bit")


@given(st.lists(st.integers(1, LARGEST), min_size=2, max_size=6), st.integers(1, WIDEST_BITS))
def test_sizes_and_bits_come_back(sizes: list[int], bits: int) -> None:
    weighted = [layer for layer in parse(f"dense:{'-'.join(map(str, sizes))}@{bits}bit") if layer.weighted]
    assert [weighted[0].n_in, *(layer.n_out for layer in weighted)] == sizes
    assert [layer.weight_bits for layer in weighted] == [bits] * (len(sizes) - 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dense",
        "dense:",
        "dense:16-8",
        "dense:16-8@",
        "dense:16-8@8",
        "dense:16@8bit",
        "dense:-16-8@8bit",
        "dense:16--8@8bit",
        "dense:16-0@8bit",
        "dense:16-65537@8bit",
        "dense:16-8@0bit",
        "dense:16-8@33bit",
        "dense:16-8@8.5bit",
        "dense:16-8x@8bit",
        "dense:16-8@8bit,gelu",
        "dense:16-8@8bit,",
        "conv:16-8@8bit",
        "dense:16-8@8bit extra",
        "dense:१६-8@8bit",
        "dense:16- 8@8bit",
        "dense:1e3-8@8bit",
        "dense:99999999999999999999-8@8bit",
    ],
)
def test_other_text_is_refused_and_the_form_shown(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert FORM in caught.value.line() and caught.value.exit_code == 2


def test_the_message_names_what_is_wrong() -> None:
    with pytest.raises(RecipeError, match="'0' is no size from 1 to 65,536"):
        parse("dense:16-0@8bit")
    with pytest.raises(RecipeError, match="'33' is no number of bits from 1 to 32"):
        parse("dense:16-8@33bit")


def test_activations_and_sums_have_sixteen_bits_unless_others_are_asked_for() -> None:
    assert {(layer.activation_bits, layer.accumulator_bits) for layer in parse("dense:16-8-4@6bit")} == {(16, 16)}
    dense, relu, _ = parse("dense:16-8-4@6bit", 7, 20)
    assert (dense.weight_bits, dense.activation_bits, dense.accumulator_bits) == (6, 7, 20)
    assert (relu.activation_bits, relu.accumulator_bits) == (7, 7)


def test_bits_are_said_once() -> None:
    check_settings("dense:16-8@8bit", {"reuse_factor": "4"})
    with pytest.raises(RecipeError, match="dense:16-8@8bit says its bits itself, --set bits=4") as caught:
        check_settings("dense:16-8@8bit", {"bits": "4"})
    assert caught.value.exit_code == 2
