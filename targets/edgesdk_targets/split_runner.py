"""SplitRunner: head and tail of a split model one after the other, in the place where the bundle is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import BundleError

from . import runner as runners
from .bundle import Bundle, nested
from .runner import DEFAULTS, Runner, RunnerFacts, RunOptions

Array = NDArray[Any]
HEAD, TAIL = "head.edge", "tail.edge"
"""Folders of the two bundles inside that of the split model."""


def point_tail(channels: int) -> str:
    """Folder of the tail for fewer channels of a bottleneck than cross at most."""
    return f"tail-{channels}.edge"


def point_name(name: str, channels: int) -> str:
    """What the model of that tail is called, beside a tail called `name`."""
    return f"{name}-{channels}ch"


def head_and_tail(bundle: Bundle) -> tuple[Bundle, Bundle]:
    """The two bundles inside that of a split model. Raises BundleError where they are not what they should be."""
    head, tail = nested(bundle, HEAD), nested(bundle, TAIL)
    for part, role in ((head, "head"), (tail, "tail")):
        if part.manifest.role != role:
            raise BundleError(f"{part.path} is a {part.manifest.role}, not the {role} of a split model", "export it anew")
    crossing, wanted = head.manifest.signature.outputs, tail.manifest.signature.inputs
    if [(s.name, s.dtype, s.shape) for s in crossing] != [(s.name, s.dtype, s.shape) for s in wanted]:
        raise BundleError(f"head and tail of {bundle.path} do not fit together", "export it anew")
    return head, tail


def point_tails(bundle: Bundle) -> dict[int, Bundle]:
    """The tails of a split model by the channels they take, most first: that for all and those for fewer; {} without points.

    Each takes the first part, along its second axis, of what the head gives. Raises BundleError where one does not.
    """
    head, tail = head_and_tail(bundle)
    model = bundle.manifest.model
    if not model.get("points"):
        return {}
    try:
        (whole,) = head.manifest.signature.outputs
        found = {int(model["channels"]): tail}
        points = sorted(((int(channels), digest) for channels, digest in model["points"].items()), reverse=True)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{bundle.path} does not say which operating points it has", "export it anew") from error
    for channels, digest in points:
        part = nested(bundle, point_tail(channels))
        (spec, *more), role = part.manifest.signature.inputs, part.manifest.role
        same = (spec.name, spec.dtype, spec.shape[:1], spec.shape[2:]) == (
            whole.name, whole.dtype, whole.shape[:1], whole.shape[2:]
        )  # fmt: skip
        if role != "tail" or part.digest != digest or more or not same or not _part_of(spec.shape, whole.shape):
            raise BundleError(f"{part.path} is not the tail for {channels} channels of {bundle.path}", "export it anew")
        found[channels] = part
    return found


def _part_of(shape: tuple[int | str, ...], whole: tuple[int | str, ...]) -> bool:
    kept, most = shape[1], whole[1]
    return isinstance(kept, int) and isinstance(most, int) and 0 < kept <= most


class SplitRunner:
    """Runs both parts here. Their bundles lie inside that of the split model, each whole: either can be copied elsewhere."""

    def __init__(self, bundle: Bundle, options: RunOptions = DEFAULTS) -> None:
        parts = head_and_tail(bundle)
        self._crossing = [spec.name for spec in parts[0].manifest.signature.outputs]
        self._names = [spec.name for spec in bundle.manifest.signature.outputs]
        self._head: Runner = runners.load(parts[0], options)
        try:
            self._tail: Runner = runners.load(parts[1], options)
        except BaseException:
            self._head.close()
            raise
        facts = [self._head.facts, self._tail.facts]
        same = facts[0].runtime == facts[1].runtime and facts[0].version == facts[1].version
        providers = tuple(dict.fromkeys(name for one in facts for name in one.providers))
        self.facts = RunnerFacts(
            facts[0].runtime if same else f"{facts[0].runtime} {facts[0].version} and {facts[1].runtime}",
            f"{facts[1].version} in two parts", providers, any(one.fallback for one in facts),
        )  # fmt: skip

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        return self._tail.run(self.crossing(feed))

    def crossing(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the head gives: the tensors that cross, by name."""
        return dict(zip(self._crossing, self._head.run(feed), strict=True))

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        self._tail.run_into({name: np.ascontiguousarray(value) for name, value in self.crossing(feed).items()}, out)

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        found = dict(self._head.count_nodes(feed))
        for name, count in self._tail.count_nodes(self.crossing(feed)).items():
            found[name] = found.get(name, 0) + count
        return found

    def close(self) -> None:
        self._head.close()
        self._tail.close()
