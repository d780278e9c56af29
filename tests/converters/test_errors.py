"""The error tree: as drawn, with exit codes, and one line each."""

from __future__ import annotations

import inspect
import re

import pytest

from edgesdk_converters import errors
from edgesdk_converters.errors import (
    BundleError,
    ContractBroken,
    DeviceError,
    DoesNotFit,
    EdgeError,
    LinkError,
    MissingExtra,
    ModelError,
    PassError,
    RecipeError,
    TargetError,
    ToolError,
    Unsupported,
)


def test_the_tree_drawn_at_the_head_of_the_file_is_the_tree_of_the_classes() -> None:
    drawn: dict[str, str] = {}
    stack: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^(\s*[│ ├└─]*)([A-Z][A-Za-z]+)\b", line)
        if match is None or not (match[1].strip() or match[2] == "EdgeError") or match[2] not in vars(errors):
            continue
        depth = (len(match[1]) - 4) // 4
        stack[depth:] = [match[2]]
        drawn[match[2]] = stack[depth - 1] if depth else "Exception"
    classes = {name: cls for name, cls in inspect.getmembers(errors, inspect.isclass) if cls.__module__ == errors.__name__}
    assert drawn == {name: cls.__bases__[0].__name__ for name, cls in classes.items()}


def test_exit_codes() -> None:
    assert [cls.exit_code for cls in (EdgeError, ModelError, PassError, TargetError, MissingExtra)] == [1] * 5
    assert (RecipeError.exit_code, ContractBroken.exit_code) == (2, 3)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModelError("a\n b", "do\nthis"), "ModelError: a b -> do this"),
        (EdgeError("only this"), "EdgeError: only this"),
        (PassError("fold", "failed", "leave it out", "conv1"), "PassError: pass fold: failed (node conv1) -> leave it out"),
        (Unsupported("pi", "n", "Op", "no kernel"), "Unsupported: pi cannot run node 'n' (Op): no kernel"),
        (DoesNotFit("weights", 2e6, 1e6, "bytes"), "DoesNotFit: weights does not fit: need 2.0 MB, have 1.0 MB"),
        (DoesNotFit("logic", 20000, 10000, "LUT"), "DoesNotFit: logic does not fit: need 20,000 LUT, have 10,000 LUT"),
        (ToolError("gcc", "failed", "x.c:1\ny.c:2"), "ToolError: gcc: failed: x.c:1 y.c:2"),
    ],
)
def test_an_error_is_one_line(error: EdgeError, line: str) -> None:
    assert error.line() == line
    assert "\n" not in error.line()


def test_errors_carry_what_they_know() -> None:
    assert PassError("fold", "m", node="n").pass_name == "fold"
    assert (DoesNotFit("x", 2, 1, "kB").need, DoesNotFit("x", 2, 1, "kB").have) == (2, 1)
    assert Unsupported("t", "n", "Op", "why").operator == "Op"
    assert ToolError("t", "m", "last").last_lines == "last"
    for cls in (BundleError, DeviceError, LinkError, ContractBroken):
        assert cls("m", "h").hint == "h"


def test_a_missing_extra_is_an_import_error_that_says_how_to_install_it() -> None:
    error = MissingExtra("torch", "safetensors")
    assert isinstance(error, ImportError)
    assert "safetensors" in error.line()
    assert "-e '.[torch]'" in error.hint
    assert "WHEEL_FILE[torch]" in error.hint
