"""Every error that edgesdk raises for something a user did, has or lacks.

    EdgeError                      exit code 1
    ├── ModelError                 the model file, its weights or its shapes
    ├── RecipeError                exit code 2: a recipe, a pass name, an option
    ├── PassError                  a pass failed: knows pass and node
    ├── ContractBroken             exit code 3: accuracy or parity out of bounds
    ├── TargetError
    │   ├── Unsupported            the target cannot run a node: knows node, operator and reason
    │   ├── DoesNotFit             knows need and have
    │   └── ToolError              an external tool failed: knows its last lines
    │       └── MissingTool        it is not installed
    ├── BundleError                a bundle is damaged, incomplete or of another format
    ├── DeviceError                unknown board, missing provider, wrong runtime
    ├── LinkError                  the way to a server or board
    └── MissingExtra               also an ImportError: an optional package is not installed

A message says what was got and what is allowed; the hint says what to do. Bugs in edgesdk itself stay ValueError and
TypeError.
"""

from __future__ import annotations

from typing import ClassVar


class EdgeError(Exception):
    """An error with a message (what was got, what is allowed) and a hint (what to do)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def line(self) -> str:
        """The error as the one line that the command line prints."""
        text = f"{self.message} -> {self.hint}" if self.hint else self.message
        return f"{type(self).__name__}: " + " ".join(text.split())


class ModelError(EdgeError):
    """The model cannot be read, is not valid, or is outside what edgesdk accepts."""


class RecipeError(EdgeError):
    """A recipe, a pass name or an option that does not exist or has the wrong type."""

    exit_code = 2


class PassError(EdgeError):
    """A pass failed; `pass_name` and `node` say where."""

    def __init__(self, pass_name: str, message: str, hint: str = "", node: str = "") -> None:
        super().__init__(f"pass {pass_name}: {message}" + (f" (node {node})" if node else ""), hint)
        self.pass_name = pass_name
        self.node = node


class ContractBroken(EdgeError):
    """Accuracy or parity is outside what was promised; nothing was written."""

    exit_code = 3


class TargetError(EdgeError):
    """A target cannot do what was asked."""


class Unsupported(TargetError):
    """A target cannot run one node exactly; knows node, operator and reason."""

    def __init__(self, target: str, node: str, operator: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{target} cannot run node {node!r} ({operator}): {reason}", hint)
        self.node = node
        self.operator = operator
        self.reason = reason


class DoesNotFit(TargetError):
    """The device has less of a resource than the model needs; `need` and `have` are in the same unit."""

    def __init__(self, what: str, need: float, have: float, unit: str, hint: str = "") -> None:
        super().__init__(f"{what} does not fit: need {_amount(need, unit)}, have {_amount(have, unit)}", hint)
        self.need = need
        self.have = have
        self.unit = unit


class ToolError(TargetError):
    """An external program failed; `last_lines` is the end of what it printed."""

    def __init__(self, tool: str, message: str, last_lines: str = "", hint: str = "") -> None:
        super().__init__(f"{tool}: {message}" + (f": {last_lines}" if last_lines else ""), hint)
        self.tool = tool
        self.last_lines = last_lines


class MissingTool(ToolError):
    """An external program is not installed; the hint says what brings it."""


class BundleError(EdgeError):
    """A bundle is damaged, incomplete, of an unknown format, or in the way."""


class DeviceError(EdgeError):
    """A device is unknown, or this machine lacks what the bundle asks for."""


class LinkError(EdgeError):
    """A link to a server or a board is down, late or garbled."""


class MissingExtra(EdgeError, ImportError):
    """An optional package is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"the Python package {package!r} is not installed", install_hint(extra))
        self.extra = extra
        self.package = package


def install_hint(extra: str) -> str:
    """The command that installs an extra; works from a checkout and beside a wheel file."""
    return f"pip install -c constraints.txt -e '.[{extra}]' in a checkout, or pip install 'WHEEL_FILE[{extra}]'"


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,g} {unit}"
