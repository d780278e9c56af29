"""What targets and devices there are, as data; a broken plugin is listed as broken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from edgesdk_converters.errors import DeviceError, TargetError
from edgesdk_targets import device, emulate, find, known, runner
from edgesdk_targets.device import DeviceProfile
from edgesdk_targets.estimate import published_profile
from edgesdk_targets.latency_model import PUBLISHED, published_ways
from edgesdk_targets.target import device_profile

from . import text
from .estimating import is_phone

ESTIMATE_ONLY = "estimate only"
"""The group of devices to which nothing can be exported."""


def list_targets() -> list[dict[str, Any]]:
    """Every target with its precisions, options and devices."""
    rows = []
    for name in known():
        try:
            cls = find(name)
        except TargetError as error:
            rows.append(
                {"name": name, "title": "", "precisions": [], "options": [], "devices": [], "problem": f"broken: {error.message}"}
            )
            continue
        rows.append(
            {
                "name": name,
                "title": cls.title,
                "precisions": list(cls.precisions),
                "options": [f"{f.name}={f.default}" for f in fields(cls) if f.name != "device"],
                "devices": [profile.name for profile in cls.devices()],
                "problem": "",
            }
        )
    return rows


def list_devices() -> list[dict[str, Any]]:
    """Every device that some verb takes, plugins' and phones included, with what can be done with it; group by group."""
    targets = list_targets()
    names = [name for row in targets for name in row["devices"]]
    profiles = [device_profile(name) for name in dict.fromkeys([*device.names(), *names])]
    profiles += [published_profile(name) for name in PUBLISHED if name not in {profile.name for profile in profiles}]
    groups = [*(row["name"] for row in targets), ESTIMATE_ONLY]
    rows = [_row(profile) for profile in profiles]
    return sorted(rows, key=lambda row: groups.index(row["group"]))


def device_facts(name: str) -> dict[str, Any]:
    """One device: what can be done with it, which measurements are behind its estimates, and its facts with their sources.

    Raises DeviceError for one that no verb takes.
    """
    names = {row["name"] for row in list_devices()}
    if name not in names:
        raise DeviceError(f"unknown device {name!r}; known: {', '.join(sorted(names))}", "see: edgesdk devices")
    profile = published_profile(name) if is_phone(name) else device_profile(name)
    ways = published_ways(PUBLISHED[name]) if name in PUBLISHED else {}
    return {
        **_row(profile),
        "published": [
            {"runtime": runtime, "backend": backend, "precision": precision, "measurements": count}
            for (runtime, backend, precision), count in sorted(ways.items())
        ],
        "facts": {key: {"value": fact.value, "source": fact.source} for key, fact in profile.facts.items()},
    }


def shown_devices(rows: Sequence[Mapping[str, Any]]) -> str:
    """`list_devices` as text: the group stands beside its first device."""
    found, before = [], ""
    for row in rows:
        found.append(("" if row["group"] == before else row["group"], row["name"], _told(row), row["title"]))
        before = row["group"]
    return "\n".join(text.table(("group", "device", "can", "what"), found))


def shown_facts(found: Mapping[str, Any]) -> str:
    """`device_facts` as text."""
    belongs = f"target {found['target']}" if found["target"] else "no target"
    lines = text.wrap(f"{found['title']} ({found['name']}, {belongs}): {_told(found)}")
    if found["estimate_only"]:
        lines += text.wrap(f"nothing can be exported to it: {found['estimate_only']}")
    ways = [f"{one['runtime']} {one['backend']} {one['precision']} ({one['measurements']})" for one in found["published"]]
    told = "; ".join(ways) or "none of this device: latency, where it is estimated, has the wider interval of a stranger"
    if found["target"] not in runner.SIMULATORS:
        lines += text.wrap(f"published measurements behind its estimates: {told}")
    rows = [(name, str(entry["value"]), entry["source"]) for name, entry in found["facts"].items()]
    return "\n".join([*lines, *text.table(("fact", "value", "source"), rows)])


def _told(row: Mapping[str, Any]) -> str:
    return ESTIMATE_ONLY if row["group"] == ESTIMATE_ONLY else ", ".join(row["can"])


def _row(profile: DeviceProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "group": ESTIMATE_ONLY if profile.estimate_only else profile.target,
        "target": profile.target,
        "title": profile.title,
        "estimate_only": profile.estimate_only,
        "can": _can(profile),
    }


def _can(profile: DeviceProfile) -> list[str]:
    """Verbs: logic is simulated instead of measured, and only some cores are emulated."""
    if profile.estimate_only:
        return ["estimate"]
    found = ["export", "simulate" if profile.target in runner.SIMULATORS else "measure"]
    try:
        emulate.core(profile)
        found.append("emulate")
    except DeviceError:
        pass
    return [*found, "estimate"]
