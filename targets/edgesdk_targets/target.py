"""Target: what a back end is. It checks a segment, compiles it to files, and estimates what it will cost; it runs nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from edgesdk_converters import fields
from edgesdk_converters.errors import DeviceError, EdgeError, RecipeError, TargetError

from . import device as device_room
from . import find, known, precision_speed
from .bundle import Bundle, Runtime
from .device import DeviceProfile
from .figure import Figure
from .runner import silent

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model
    from edgesdk_converters.passes import Pass

Role = Literal["whole", "head", "tail"]
DEFAULT_WIDTH = 8
"""Channels: vectors of eight 32-bit numbers, or of sixteen 16-bit ones by two, fit every device that we know."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of a network that runs in one place."""

    model: Model
    role: Role = "whole"


@dataclass(frozen=True)
class Compiled:
    """What a target made of a segment: payload files, how to run them, and what is left to do on the device.

    `plan` are steps for `edgesdk build`, as data: {"step": "warm"} loads the bundle once on the device so that the runtime
    builds and caches its engine.
    """

    files: Mapping[str, bytes]
    runtime: Runtime
    plan: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completed:
    """What tools on this machine add to a bundle that holds its contract: files beside its payload, figures, and notes."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    rows: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A back end for one device. Subclasses are frozen dataclasses; their fields after `device` are options (`--set`).

    `precisions` maps each precision that can be asked for to its recipe: a tuple of (pass name, options) in order.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    default_device: ClassVar[str]
    default_precision: ClassVar[str] = "fp32"
    precisions: ClassVar[Mapping[str, tuple[tuple[str, Mapping[str, Any]], ...]]]

    device: DeviceProfile

    @classmethod
    def devices(cls) -> tuple[DeviceProfile, ...]:
        """The devices that imply this target; a third party's target gives its own."""
        return device_room.of_target(cls.name)

    def with_options(self, settings: Mapping[str, str]) -> Target:
        """The target with options set from text. Raises RecipeError for an unknown one, listing the known."""
        return fields.replace(self, settings, f"target {self.name}", RecipeError, fixed=("device",))

    def recipe(self, precision: str) -> dict[str, Any]:
        """The passes that bring a model to a precision, as recipe data. Raises TargetError for one it does not have."""
        if precision not in self.precisions:
            raise TargetError(
                f"target {self.name} has no precision {precision!r}; it has: {', '.join(self.precisions)}",
                "give one of these with --precision",
            )
        return {"whole": [{"pass": name, **options} for name, options in self.precisions[precision]]}

    def variants(self, precision: str) -> dict[str, dict[str, Any]]:
        """Recipes by name of which any gives the precision, the likeliest first: which is best depends on the network."""
        return {precision: self.recipe(precision)}

    def check_source(self, model: Model, passes: Sequence[Pass]) -> None:
        """Raise, before any of `passes` runs, what `check` or `compile` is certain to say after all of them: nothing as a rule.

        Passes can take minutes. What only they decide is left to `check`: whatever would be built is never refused here.
        """

    def check(self, segment: Segment) -> None:
        """Raise Unsupported (node, operator, reason) or DoesNotFit where the device cannot run the segment exactly."""
        raise NotImplementedError

    def compile(self, segment: Segment) -> Compiled:
        """The files for the device. Pure: the same segment gives the same bytes."""
        raise NotImplementedError

    def estimate(self, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        """What the layers will cost on the device at a precision, totals first."""
        raise NotImplementedError

    def estimate_model(self, model: Model, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        """The same of a model that is at hand, whose layers these are: by its layers as a rule."""
        return self.estimate(layers, precision)

    def estimate_text(self, text: str) -> tuple[Figure, ...]:
        """The same of a network that is only a line of text (`dense:16-64-32-5@8bit`). Raises TargetError where there is none."""
        raise TargetError(f"target {self.name} estimates models; {text!r} is for fpga", "give a model, or an FPGA as --device")

    def estimate_notes(self, rows: Sequence[Figure], source: Model | str | None = None) -> tuple[str, ...]:
        """What a reader of these estimates has to know: nothing as a rule. `source` is the model or the text that they are of."""
        return ()

    def estimate_segment(self, segment: Segment, layers: Sequence[Layer], precision: str) -> tuple[Figure, ...]:
        """The same of a segment that was compiled: its layers as a rule; nothing where `complete` knows better."""
        return self.estimate(layers, precision)

    def complete(self, bundle: Bundle, progress: Callable[[str], None] = silent) -> Completed:
        """What the target's tools, where they are free and here, make and say of a bundle that holds its contract: nothing."""
        return Completed()

    def artefact(self, names: Collection[str], runtime: Runtime) -> tuple[str, ...]:
        """Which of a bundle's files, by name, are what goes onto the device, and its size: what the runtime loads as a rule."""
        return (runtime.file,)

    @property
    def width_multiple(self) -> int:
        """Of how many channels the device computes at once: layers of other widths can be slower than wider ones."""
        return self.device.get("width_multiple", int) or DEFAULT_WIDTH

    def speed_ratio(self, layers: Sequence[Layer], precision: str) -> Figure:
        """How many times as fast as fp32 the layers will be, for ranking; unavailable where nothing is known of it."""
        return precision_speed.speed_ratio(self.device, layers, precision)


def device_profile(name: str) -> DeviceProfile:
    """The profile of a device, of ours or of an installed plugin's. Raises DeviceError for an unknown one."""
    if name in device_room.names():
        return device_room.profile(name)
    for target in known():
        try:
            found = find(target).devices()
        except EdgeError:
            continue  # a broken plugin is an error only when it is asked for
        for profile in found:
            if profile.name == name:
                return profile
    return device_room.profile(name)


def make(target: str | None, device: str | None, settings: Mapping[str, str] | None = None) -> Target:
    """The target for `--target` and `--device`: a device implies its target, a target has a default device.

    Raises TargetError or DeviceError where they are unknown or disagree, RecipeError for unknown options.
    """
    if target is None and device is None:
        raise TargetError("no target given", f"give --target NAME ({', '.join(known())}) or --device NAME")
    if device is None:
        assert target is not None
        cls = find(target)
        profile = next((d for d in cls.devices() if d.name == cls.default_device), None)
        if profile is None:
            raise TargetError(f"target {target!r} names {cls.default_device!r} as its default device, but has no such")
        return cls(profile).with_options(settings or {})
    profile = device_profile(device)
    if target is not None and profile.target != target:
        fitting = ", ".join(d.name for d in find(target).devices())
        raise DeviceError(f"device {device!r} belongs to target {profile.target!r}, not {target!r}; its devices: {fitting}")
    return find(profile.target)(profile).with_options(settings or {})
