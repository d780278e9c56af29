"""Targets: one file per back end, devices as data, bundles, runners, measuring and estimating."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgesdk_converters import plugins
from edgesdk_converters.errors import TargetError

if TYPE_CHECKING:
    from .target import Target

TARGETS = {
    "raspberry-pi": "edgesdk_targets.raspberry_pi:RaspberryPi",
    "jetson": "edgesdk_targets.jetson:Jetson",
    "fpga": "edgesdk_targets.fpga.target:Fpga",
    "server": "edgesdk_targets.server:Server",
}
GROUP = "edgesdk.targets"


def find(name: str) -> type[Target]:
    """The target class of that name. Raises TargetError for an unknown or broken one."""
    return plugins.find(TARGETS, GROUP, name, TargetError)


def known() -> tuple[str, ...]:
    """Names of all targets, those of installed plugins included."""
    return plugins.known(TARGETS, GROUP)
