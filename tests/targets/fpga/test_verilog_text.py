"""Verilog as text: numbers in memory files, names, and lanes of other widths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesdk_targets.fpga.verilog_text import identifier, memory_file, resized, sized


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_memory_file_holds_each_word_with_its_first_element_lowest(bits: int, elements: int, depth: int, seed: int) -> None:
    words = np.random.default_rng(seed).integers(-(1 << bits - 1), 1 << bits - 1, (depth, elements))
    lines = memory_file(words, bits).decode().split()
    assert len(lines) == depth
    for line, word in zip(lines, words.tolist(), strict=True):
        value = int(line, 16)
        found = [(value >> place * bits) % (1 << bits) for place in range(elements)]
        assert found == [element % (1 << bits) for element in word] and value < 1 << bits * elements


@pytest.mark.parametrize(
    ("text", "name"), [("/block.1/Conv", "block_1_conv"), ("", "node"), ("été", "t"), ("x" * 90, "x" * 40), ("A", "a")]
)
def test_any_text_gives_a_name(text: str, name: str) -> None:
    assert identifier(text) == name


def test_lanes_grow_by_their_sign_and_shrink_from_above() -> None:
    assert resized("v", 2, 3, True, 5) == "{{2{v[5]}}, v[5:3], {2{v[2]}}, v[2:0]}"
    assert resized("v", 1, 2, False, 3) == "{{1{1'b0}}, v[1:0]}"
    assert resized("v", 2, 3, True, 2) == "{v[4:3], v[1:0]}"
    assert resized("v", 2, 3, True, 3) == "v"


def test_a_negative_number_is_its_two_s_complement() -> None:
    assert (sized(-1, 6), sized(5, 6)) == ("6'h3f", "6'h5")
