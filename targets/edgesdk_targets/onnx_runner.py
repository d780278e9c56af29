"""Run an ONNX payload with ONNX Runtime, on the providers that the bundle asks for and on no other."""

from __future__ import annotations

import functools
import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgesdk_converters.errors import DeviceError, EdgeError, MissingExtra

from . import engine_cache
from .bundle import CPU, Bundle, Provider
from .onnxruntime_support import EXACT_INT8, version_key
from .runner import DEFAULTS, RunnerFacts, RunOptions

try:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as ort_state
except ImportError as _error:
    raise MissingExtra("cpu", "onnxruntime") from _error

Array = NDArray[Any]
TENSORRT = "TensorrtExecutionProvider"
_ERRORS: tuple[type[Exception], ...] = (
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
    ort_state.EPFail,
    ort_state.EngineError,
)
_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
}
_BOUND_ERRORS: tuple[type[Exception], ...] = (*_ERRORS, RuntimeError)  # a kernel that fails under an IOBinding is a RuntimeError
_ASSIGNMENT = "session.record_ep_graph_assignment_info"


class OnnxRunner:
    """An ONNX Runtime session made from a bundle."""

    def __init__(self, bundle: Bundle, options: RunOptions = DEFAULTS) -> None:
        runtime = bundle.manifest.runtime
        if runtime.minimum and version_key(ort.__version__) < version_key(runtime.minimum):
            raise DeviceError(
                f"the bundle needs onnxruntime {runtime.minimum} or newer; this is {ort.__version__}",
                "update onnxruntime, or export the model with a lower opset",
            )
        providers, fallback = self._choose(runtime.providers, options)
        self._reopen = functools.partial(self._open, bundle, providers, options)
        self._session = self._reopen()
        self._names = [output.name for output in self._session.get_outputs()]
        active = tuple(self._session.get_providers())
        asked = [provider.name for provider in providers]
        if not set(asked) <= set(active):
            missing = ", ".join(name for name in asked if name not in active)
            raise DeviceError(
                f"onnxruntime did not start {missing} although it lists it", "run edgesdk doctor; see its log above"
            )
        shown = tuple(name for name in active if name in asked)
        self.facts = RunnerFacts("onnxruntime", ort.__version__, shown, fallback, self._assigned_nodes())

    @staticmethod
    def _choose(wanted: Sequence[Provider], options: RunOptions) -> tuple[tuple[Provider, ...], bool]:
        if options.providers is not None:
            return tuple(Provider(name) for name in options.providers), False
        available = ort.get_available_providers()
        missing = [provider.name for provider in wanted if provider.name not in available]
        if not missing:
            return tuple(wanted), False
        if not options.allow_fallback:
            raise DeviceError(
                f"the bundle runs on {missing[0]}; this onnxruntime {ort.__version__} has {', '.join(available)}",
                "install the onnxruntime build that has it (edgesdk doctor), or allow the CPU with --allow-fallback",
            )
        return (Provider(CPU),), True

    @staticmethod
    def _open(bundle: Bundle, providers: Sequence[Provider], options: RunOptions, profile: str = "") -> Any:
        """A session; with `profile` (the beginning of a path) one that writes how long each node took."""
        runtime = bundle.manifest.runtime
        session = ort.SessionOptions()
        session.log_severity_level = 3
        session.intra_op_num_threads = options.threads or runtime.threads
        session.enable_cpu_mem_arena = runtime.arena
        session.graph_optimization_level = _LEVELS[runtime.optimization]
        for key, value in runtime.config.items():
            session.add_session_config_entry(key, value)
        names = [provider.name for provider in providers]
        if CPU in names and CPU not in [provider.name for provider in runtime.providers]:
            for key, value in EXACT_INT8.items():
                session.add_session_config_entry(key, value)
        if CPU not in names:
            session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        session.add_session_config_entry(_ASSIGNMENT, "1")
        if profile:
            session.enable_profiling, session.profile_file_prefix = True, profile
        settings = []
        for provider in providers:
            own = dict(provider.options)
            if provider.name == TENSORRT:
                folder = engine_cache.folder(bundle.digest)
                own |= {"trt_engine_cache_path": str(folder), "trt_timing_cache_path": str(folder)}
            settings.append(own)
        try:
            return ort.InferenceSession(
                bundle.read(runtime.file), session, providers=names, provider_options=settings, enable_fallback=0
            )
        except _ERRORS as error:
            raise DeviceError(f"onnxruntime {ort.__version__} cannot load {runtime.file}: {_text(error)}") from error
        except (ValueError, RuntimeError) as error:
            raise DeviceError(f"onnxruntime {ort.__version__} refuses the providers {names}: {_text(error)}") from error

    def count_nodes(self, feed: Mapping[str, Array]) -> Mapping[str, int]:
        """Nodes that each provider runs: what the session recorded, or (before ONNX Runtime 1.24) seen in a profiled run.

        The profile shows the graph after ONNX Runtime's own fusions, and what TensorRT took as one node for each engine.
        """
        if self.facts.nodes:
            return self.facts.nodes
        with tempfile.TemporaryDirectory() as folder:
            session = self._reopen(profile=str(Path(folder, "profile")))
            session.run(self._names, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        seen = {
            (event["args"]["provider"], event["name"].removesuffix("_kernel_time"))
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event.get("args", {}).get("provider")
        }
        return dict(Counter(provider for provider, _ in seen))

    def _assigned_nodes(self) -> dict[str, int]:
        describe = getattr(self._session, "get_provider_graph_assignment_info", None)
        if describe is None:  # before ONNX Runtime 1.24
            return {}
        parts = describe()
        counts: Counter[str] = Counter()
        for part in parts:
            counts[part.ep_name] += len(part.get_nodes())
        return dict(counts)

    def run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        try:
            outputs: Sequence[Array] = self._session.run(self._names, feed)
        except _ERRORS as error:
            raise EdgeError(f"the model failed on these inputs: {_text(error)}") from error
        return outputs

    def run_into(self, feed: Mapping[str, Array], out: Mapping[str, Array]) -> None:
        try:
            binding = self._session.io_binding()
            for name, array in feed.items():
                binding.bind_cpu_input(name, array)
            for name in self._names:
                array = out[name]
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self._session.run_with_iobinding(binding)
        except _BOUND_ERRORS as error:
            raise EdgeError(f"the model failed on these inputs: {_text(error)}") from error

    def close(self) -> None:
        self._session = None


def _text(error: Exception) -> str:
    return " ".join(str(error).replace("[ONNXRuntimeError]", "").split()).lstrip(": ")[:400]
