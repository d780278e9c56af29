"""Runner: loads a bundle's payload into its runtime, runs it, closes it. Also the table of runners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgesdk_converters import plugins
from edgesdk_converters.errors import DeviceError

if TYPE_CHECKING:
    from .bundle import Bundle
    from .figure import Provenance

Array = NDArray[Any]

RUNNERS = {
    "onnxruntime": "edgesdk_targets.onnx_runner:OnnxRunner",
    "split": "edgesdk_targets.split_runner:SplitRunner",
    "fpga": "edgesdk_targets.fpga.runner:FpgaRunner",
}
SIMULATORS = frozenset(["fpga"])
"""Runners that simulate other hardware: their answers are its answers, and their time is nothing."""
GROUP = "edgesdk.runners"


def silent(message: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class RunOptions:
    """What the caller may choose at load time: threads (0 = the bundle's choice), fallback, which providers, progress."""

    threads: int = 0
    allow_fallback: bool = False
    providers: tuple[str, ...] | None = None
    progress: Callable[[str], None] = silent


DEFAULTS = RunOptions()


@dataclass(frozen=True)
class RunnerFacts:
    """What really runs: runtime, version, providers in use and how many nodes each got (empty where it cannot be told).

    `simulated`: it is a simulation of the hardware, whose answers are its answers and whose time says nothing. `because`: why a
    fallback runs, where that is known.
    """

    runtime: str
    version: str
    providers: tuple[str, ...]
    fallback: bool = False
    nodes: Mapping[str, int] = field(default_factory=dict)
    simulated: bool = False
    because: str = ""

    @property
    def provenance(self) -> Provenance:
        """Of what is found out by running it."""
        return "simulated" if self.simulated else "measured"

    def __str__(self) -> str:
        named = [name for name in self.providers if name != self.runtime]
        since = [f"since {self.because}"] if self.because else []
        return ", ".join([f"{self.runtime} {self.version}".rstrip(), *named, *since])


class Runner(Protocol):
    """One loaded model. `run` may be called from several threads at once."""

    facts: RunnerFacts

    def __init__(self, bundle: Bundle, options: RunOptions) -> None: ...

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """The outputs in the signature's order. Inputs have been checked already."""
        ...

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        """As `run`, writing outputs into writable contiguous arrays of the right type and shape."""
        ...

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        """How many nodes each provider runs, empty where it cannot be told; may load the model once more to find out."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Batched(Protocol):
    """A runner that does many inferences much faster together than one by one."""

    def run_many(self, feeds: Sequence[Mapping[str, Array]]) -> list[Sequence[Array]]:
        """The outputs of each, in the signature's order."""
        ...


def load(bundle: Bundle, options: RunOptions = DEFAULTS) -> Runner:
    """The runner of a bundle. Raises DeviceError for one this edgesdk does not know, MissingExtra where it is not installed."""
    cls = plugins.find(RUNNERS, GROUP, bundle.manifest.runtime.name, DeviceError)
    runner: Runner = cls(bundle, options)
    return runner
