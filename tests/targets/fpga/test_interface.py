"""Values to codes and back: what no integer can hold is refused or saturates."""

from __future__ import annotations

import numpy as np
import pytest

from edgesdk_converters.errors import ModelError
from edgesdk_converters.integer_program import Codes
from edgesdk_targets.fpga.interface import Interface, Port

BYTES = Interface((Port(Codes("x", (3,), -4, -128, 127), "float32"),), (Port(Codes("y", (3,), -4, -128, 127), "float32"),))


def test_values_are_rounded_and_what_is_out_of_range_saturates_infinity_too() -> None:
    values = np.array([[0.5, -np.inf, np.inf], [1e9, -1e9, 1.03125]], np.float32)
    assert BYTES.encode({"x": values})["x"].tolist() == [[8, -128, 127], [127, -128, 16]]


def test_nan_is_refused_by_the_name_of_its_input() -> None:
    with pytest.raises(ModelError, match="input 'x' holds NaN"):
        BYTES.encode({"x": np.array([[0.0, np.nan, 1.0]], np.float32)})


def test_an_interface_reads_as_it_was_written() -> None:
    assert Interface.from_bytes(BYTES.to_bytes()) == BYTES
