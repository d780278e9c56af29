"""The verbs beside export: verify, measure, estimate, inspect, build."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgesdk_converters.errors import BundleError, ContractBroken, DeviceError, EdgeError, MissingExtra, ModelError
from edgesdk_targets import board_facts, device, efficiency, engine_cache, golden, runner
from edgesdk_targets import measure as measuring
from edgesdk_targets.bundle import Bundle, open_bundle
from edgesdk_targets.conditions import Conditions, explore
from edgesdk_targets.figure import Figure, counted, unavailable
from edgesdk_targets.report import Report, Verdict

if TYPE_CHECKING:
    from edgesdk_converters.model import Model
    from edgesdk_converters.split import Cut


def verify(path: str | os.PathLike[str], *, progress: Callable[[str], None] = runner.silent) -> Report:
    """Check a bundle: every digest, and its golden vectors in its own runtime, or in what is here, each named.

    Where the runtime is missing, device rows are unavailable and the contract is pending: that is no error. Raises
    BundleError for damage and ContractBroken where the artefact computes something else than when it was made.
    """
    progress("checking digests")
    bundle = open_bundle(path)
    manifest = bundle.manifest
    facts = measuring.machine_facts()
    here = f"this machine ({facts['cpu']}, {facts['architecture']})"
    rows = [counted("bundle_bytes", bundle.payload_bytes, f"{len(manifest.files)} files, every digest holds")]
    status = manifest.contract.get("status", "none")
    verdict = Verdict(status, str(manifest.contract.get("text", ""))) if status in ("passed", "pending") else Verdict()
    progress("running the golden vectors")
    try:
        loaded = runner.load(bundle, runner.RunOptions(allow_fallback=True))
    except MissingExtra as error:
        rows.append(unavailable("relative_error", here, f"golden vectors not run: {error.message}; {error.hint}"))
        if verdict.status == "passed":
            verdict = Verdict("pending", f"{verdict.text}; not run here, there is no runtime")
        return _report(bundle, rows, verdict, facts)
    try:
        result = golden.compare(bundle, loaded)
    finally:
        loaded.close()
    if result is not None:
        found_by = loaded.facts.provenance
        against = f"{result.cases} golden inputs, {loaded.facts}"
        rows.append(
            Figure(
                "relative_error",
                result.source_relative_error,
                found_by,
                here,
                f"against the source, {against}",
                n=result.cases,
            )
        )
        rows.append(
            Figure(
                "max_abs_error",
                result.source_abs_error,
                found_by,
                here,
                f"against the source, {against}",
                n=result.cases,
            )
        )
        rows.append(
            Figure(
                "relative_error", result.artifact_relative_error, found_by, here,
                f"against the artefact's own outputs, {against}; allowed {result.tolerance:g}", segment="repeat", n=result.cases,
            )
        )  # fmt: skip
        if not result.holds:
            raise ContractBroken(
                f"{path}: on {loaded.facts} the outputs are {result.artifact_relative_error:.2g} relative from the golden ones; "
                f"allowed: {result.tolerance:g}",
                "this runtime computes something else than the one the bundle was made with; try another version of it",
            )
    if loaded.facts.fallback:
        reason = f"{manifest.runtime.providers[0].name} is not here; verify again on the board"
        if loaded.facts.simulated:
            reason = f"{loaded.facts.because}; verify again where it is"
        rows.append(unavailable("relative_error", manifest.device, reason, "device"))
        if verdict.status != "none":
            verdict = Verdict("pending", verdict.text)
    return _report(bundle, rows, verdict, facts)


def measure(
    path: str | os.PathLike[str],
    *,
    on: str = "local",
    runs: int | None = None,
    threads: int = 0,
    data: str | os.PathLike[str] | None = None,
    allow_fallback: bool = False,
    search: bool = False,
    minutes: float = 0.0,
    cold: bool = False,
    token: str = "",
    ca: str = "",
    progress: Callable[[str], None] = runner.silent,
) -> Report:
    """Time a bundle on this machine; with `data` also its accuracy, against the contract where the data are the same.

    With `search` also for each number of threads on all and on some cores, with `minutes` how it goes on end, with `cold` the
    start with nothing in memory. `on="http://HOST:PORT"`: the same on the board where an agent listens, which wants its `token`
    (`ca`: PEM certificates to trust for https://). `on="emulator"`: golden vectors and instructions on an emulated core of the
    bundle's device, and no times. Raises DeviceError where it cannot run there, LinkError where the way there fails,
    ContractBroken where the accuracy promised is not reached.
    """
    conditions = Conditions(search, minutes, cold)
    if on.startswith(("http://", "https://")):
        from .far_measure import far_measure

        return far_measure(
            path, on, token=token, ca=ca, runs=runs, threads=threads, data=data, allow_fallback=allow_fallback,
            conditions=conditions, progress=progress,
        )  # fmt: skip
    if on == "emulator":
        if runs is not None or threads > 1 or data is not None or allow_fallback or conditions != Conditions():
            raise DeviceError("the emulator counts on one thread, on golden inputs", "leave out all other options of measure")
        from edgesdk_targets.emulate import emulate

        return emulate(path, progress=progress)
    if on != "local":
        raise DeviceError(
            f"cannot measure on {on!r}; allowed: local, emulator, http://HOST:PORT", "start edgesdk agent on the board"
        )
    report = measuring.measure(path, runs=runs, threads=threads, allow_fallback=allow_fallback, progress=progress)
    here = measuring.place(report.machine)
    found = explore(Path(path), conditions, threads=threads, allow_fallback=allow_fallback, where=here, progress=progress)
    machine, notes = {**report.machine, **dict(found.machine)}, (*report.notes, *found.notes)
    report = replace(report, rows=(*report.rows, *_shares(Path(path), report), *found.rows), machine=machine, notes=notes)
    if data is None:
        return report
    rows, verdict = _accuracy(measuring.opened(path), data, threads, allow_fallback, progress)
    return replace(report, rows=(*report.rows, *rows), contract=verdict)


def _shares(path: Path, report: Report) -> tuple[Figure, ...]:
    """How much of the device the run used, where this is the device and the report of the export counts the work.

    No peak_share where it is not known what computed: of a fallback, of CPU threads that nobody counted, and of a split, whose
    parts have a precision each.
    """
    if not report.machine["is_device"]:
        return ()
    try:
        bundle = measuring.opened(path)
        macs = bundle.report().find("macs")
    except BundleError:
        return ()  # a bundle that travelled without its report
    if macs is None or not macs.value:
        return ()
    board = device.profile(report.device)
    threads, precision = int(report.machine.get("threads", 0)), str(report.machine["precision"])
    on_gpu = report.target == "jetson"
    found = efficiency.shares(report.rows, int(macs.value), board, precision=precision, on_gpu=on_gpu, threads=threads)
    is_known = bundle.manifest.role != "split" and not report.machine.get("fallback") and (on_gpu or threads > 0)
    return found if is_known else tuple(row for row in found if row.name != "peak_share")


def cuts(
    model: str | os.PathLike[str] | Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    pairs: bool = False,
    fold: bool = False,
    progress: Callable[[str], None] = runner.silent,
) -> tuple[Cut, ...]:
    """Where a model falls in a head and a tail, in graph order: at one tensor, with `pairs` also at two.

    An export folds a model before it splits it: with `fold` the names are those that it knows then. Raises ModelError where
    shapes are not static.
    """
    from .cut_table import survey

    return survey(model, shapes=shapes, constants=constants, pairs=pairs, fold=fold, progress=progress).cuts


def inspect(
    source: str | os.PathLike[str] | Model,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    sensitivity: bool = False,
    against: str | os.PathLike[str] | Model | None = None,
    target: str | None = None,
    device: str | None = None,
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> dict[str, Any]:
    """What a model or a bundle is: signature, operators, costs or, for a bundle, its manifest in short. JSON-ready.

    With `sensitivity` also what each layer of a model costs as the target's int8, on `data` or seeded inputs; with `against`
    where another model (or bundle) made from it first gives something else.
    """
    if isinstance(source, (str, os.PathLike)) and (os.fspath(source).endswith((".edge", ".zip")) or Path(source).is_dir()):
        if sensitivity or against is not None:
            raise ModelError(f"{source} is a bundle; --sensitivity and --against start from a model", "name its source model")
        return _inspect_bundle(open_bundle(source))
    from edgesdk_converters import graph
    from edgesdk_converters.cost import layers, total

    from .sources import open_model

    model = open_model(source, shapes=shapes)
    found: dict[str, Any] = {
        "kind": "model",
        "name": model.name,
        "digest": model.digest,
        "opset": model.opset,
        "ir_version": model.proto.ir_version,
        "bytes": model.proto.ByteSize(),
        "signature": model.signature.to_json(),
        "operators": dict(Counter(node.op_type for node in graph.nodes(model.proto)).most_common()),
    }
    try:
        sums = total(layers(model))
    except ModelError as error:
        found["costs"] = {"unavailable": error.message, "hint": error.hint}
    else:
        found["costs"] = {
            "macs": sums.macs,
            "params": sums.params,
            "weight_bytes": sums.weight_bytes,
            "peak_activation_bytes": sums.peak_activation_bytes,
            "macs_by_kind": sums.by_kind,
        }
    from . import layerwise

    if sensitivity:
        found["sensitivity"] = layerwise.sensitivity(model, target=target, device=device, data=data, progress=progress)
    if against is not None:
        found["against"] = layerwise.against(model, against, data=data, progress=progress)
    return found


def build(
    path: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> Report:
    """Carry out the plan that lies in a bundle: build what the first request must not wait for, or what logic is made of.

    `out` is the folder in which a project for an FPGA is built (default NAME.build beside the bundle). Raises DeviceError where
    the device lacks what the plan needs, ToolError for a tool that is missing or fails; the bundle itself is never changed.
    """
    bundle = open_bundle(path)
    rows: list[Figure] = []
    notes: list[str] = []
    for step in bundle.manifest.plan:
        kind = step.get("step")
        if kind == "warm":
            rows += _warm(bundle, progress, notes)
        elif kind in ("make", "vendor"):
            from edgesdk_targets.fpga import building

            stem = bundle.path.name.removesuffix(".zip").removesuffix(".edge")
            folder = Path(out) if out is not None else bundle.path.with_name(f"{stem}.build")
            if folder.exists() and not folder.is_dir():
                raise BundleError(f"{folder} is there already, and is a file", "give another --out: a folder to build in")
            found = building.make(bundle, folder, progress) if kind == "make" else building.vendor(bundle, step, folder, progress)
            rows += found[0]
            notes += found[1]
        else:
            raise BundleError(f"{path}: its plan has a step {kind!r} that this edgesdk does not know", "update edgesdk")
    if not bundle.manifest.plan:
        notes.append(f"nothing to build: a {bundle.manifest.target} bundle is complete as it is")
    facts = measuring.machine_facts()
    return replace(_report(bundle, rows, Verdict(), facts), notes=tuple(notes))


def _warm(bundle: Bundle, progress: Callable[[str], None], notes: list[str]) -> list[Figure]:
    facts = measuring.machine_facts()
    here = f"this machine ({facts['cpu']})"
    progress("building the engine: minutes on a board; it is cached for every later start")
    begin = time.perf_counter()
    loaded = runner.load(bundle, runner.RunOptions(progress=progress))
    try:
        result = golden.compare(bundle, loaded)
        build_ms = (time.perf_counter() - begin) * 1e3
        cases = golden.load(bundle, "inputs")
        nodes = loaded.count_nodes(cases[0]) if cases else loaded.facts.nodes
    finally:
        loaded.close()
    rows = [Figure("build_ms", build_ms, "measured", here, f"load and first runs, {loaded.facts}", n=1)]
    for provider, count in nodes.items():
        rows.append(Figure("provider_nodes", count, "measured", here, f"nodes that {provider} runs", segment=provider, n=1))
    if result is not None:
        rows.append(
            Figure(
                "relative_error",
                result.source_relative_error,
                "measured",
                here,
                f"against the source, {loaded.facts}",
                n=result.cases,
            )
        )
        if not result.holds:
            raise ContractBroken(
                f"the engine's outputs are {result.artifact_relative_error:.2g} relative from the golden ones; "
                f"allowed: {result.tolerance:g}",
                "export with --precision fp32, or with real inputs as --data",
            )
    notes.append(f"engines are cached in {engine_cache.folder(bundle.digest)}")
    return rows


def _accuracy(
    bundle: Bundle, data: str | os.PathLike[str], threads: int, allow_fallback: bool, progress: Callable[[str], None]
) -> tuple[list[Figure], Verdict]:
    """Accuracy of a bundle on labelled data, here; and the contract, where the data are those it was made on."""
    from edgesdk_converters import accuracy
    from edgesdk_converters.calibration import Samples

    samples = Samples.load(data, bundle.manifest.signature)
    if samples.labels is None:
        raise EdgeError(f"{samples.origin} has no labels, so there is no accuracy to measure", "add an array named labels")
    loaded = runner.load(bundle, runner.RunOptions(threads, allow_fallback))
    outputs = []
    try:
        for index, sample in enumerate(samples):
            if index % 200 == 0:
                progress(f"checking accuracy: {index} of {len(samples)} samples")
            outputs.append(loaded.run(sample)[0])
    finally:
        loaded.close()
    right = float((accuracy.top1(np.stack(outputs)) == samples.labels).mean())
    facts = measuring.machine_facts()
    here = f"this machine ({facts['cpu']}, {facts['architecture']})"
    how = board_facts.provenance() if board_facts.emulator() else loaded.facts.provenance
    rows = [Figure("accuracy", right, how, here, f"top-1 accuracy on {samples.origin}, {loaded.facts}", n=len(samples))]
    kept = bundle.manifest.contract
    if kept.get("data_sha256") != samples.digest() or "source_accuracy" not in kept:
        return rows, Verdict("none", "the contract was made on other data")
    drop = 100 * (float(kept["source_accuracy"]) - right)
    rows.append(Figure("accuracy_drop", drop, how, here, "against the source's accuracy in the manifest", n=len(samples)))
    promised = kept.get("max_drop_points")
    if promised is None:
        return rows, Verdict("none", "no drop was promised")
    text = f"top-1 drops {drop:.2f} points on {loaded.facts}, promised at most {promised:g}, n={len(samples)}"
    if drop > float(promised):
        raise ContractBroken(text, "export with a higher precision")
    return rows, Verdict("pending" if loaded.facts.fallback else "passed", text)


def _inspect_bundle(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "kind": "bundle",
        "name": manifest.name,
        "digest": bundle.digest,
        "target": manifest.target,
        "device": manifest.device,
        "precision": manifest.precision,
        "role": manifest.role,
        "bytes": bundle.payload_bytes,
        "signature": manifest.signature.to_json(),
        "runtime": {
            "name": manifest.runtime.name,
            "minimum": manifest.runtime.minimum,
            "providers": [provider.name for provider in manifest.runtime.providers],
            "threads": manifest.runtime.threads,
        },
        "history": [dict(step) for step in manifest.history],
        "contract": dict(manifest.contract),
        "notes": list(manifest.notes),
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
    }


def _report(bundle: Bundle, rows: Sequence[Figure], verdict: Verdict, facts: Mapping[str, Any]) -> Report:
    manifest = bundle.manifest
    return Report(manifest.name, manifest.target, manifest.device, bundle.digest, tuple(rows), verdict, facts, manifest.notes)
