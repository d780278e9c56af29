"""What is compared: models, bundles and layer lists opened, and how often each is right on this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgesdk_converters.errors import BundleError, EdgeError, ModelError
from edgesdk_targets import board_facts, runner
from edgesdk_targets import bundle as bundles
from edgesdk_targets import measure as measuring
from edgesdk_targets.figure import Figure, counted, unavailable

if TYPE_CHECKING:
    from edgesdk_converters.calibration import Samples
    from edgesdk_converters.cost import Layer, Totals
    from edgesdk_converters.model import Model
    from edgesdk_targets.bundle import Bundle
    from edgesdk_targets.report import Report

Array = NDArray[Any]
Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, bundle or layer list. `no_layers` says why a bundle has none that could be estimated.

    `precision` is what estimates are asked for where nobody says: "" each target's own, a bundle's where it is no longer fp32.
    `bits` are those of a bundle in fixed point, else 0.
    """

    name: str
    source: str
    kind: str
    digest: str = ""
    layers: tuple[Layer, ...] = ()
    no_layers: str = ""
    model: Model | None = None
    bundle: Bundle | None = None
    report: Report | None = None
    precision: str = ""
    bits: int = 0
    notes: tuple[str, ...] = ()

    def totals(self) -> Totals:
        from edgesdk_converters.cost import total

        return total(self.layers)

    def weights(self) -> Figure:
        what = "model as it came, before an export" if self.bundle is None else "network in the bundle"
        return counted("weight_bytes", self.totals().weight_bytes, f"weights of the {what}")


def open_subjects(
    sources: Sequence[str | os.PathLike[str]], shapes: Mapping[str, Sequence[int]], progress: Progress
) -> list[Subject]:
    """All sources, before anything is estimated. A shape goes to every model that has an input of its name.

    Raises EdgeError for the first that cannot be opened, ModelError for a shape that no model takes.
    """
    used: set[str] = set()
    found = []
    for source in sources:
        text = os.fspath(source)
        progress(f"opening {text}")
        if text.endswith(".json"):
            found.append(_layer_list(text))
        elif text.endswith((".edge", ".zip")) or Path(text).is_dir():
            found.append(_bundle(text))
        else:
            found.append(_model(text, shapes, used))
    if unknown := [name for name in shapes if name not in used]:
        raise ModelError(f"--shape {unknown[0]}: no model here has an input of that name", "see: edgesdk inspect MODEL")
    names = [subject.name for subject in found]
    return [replace(one, name=one.source) if names.count(one.name) > 1 else one for one in found]


def accuracy_here(subjects: Sequence[Subject], data: str | os.PathLike[str] | None, progress: Progress) -> list[Figure]:
    """Top-1 of each subject on labelled samples, on this machine; unavailable with the reason where it cannot be had.

    A model runs in ONNX Runtime, a bundle in its own runtime. Raises ModelError where `data` is no .npz.
    """
    from edgesdk_converters.calibration import read_npz

    arrays = None if data is None else read_npz(data)
    facts = measuring.machine_facts()
    here = f"this machine ({facts['cpu']}, {facts['architecture']})"
    found = []
    for subject in subjects:
        try:
            found.append(_accuracy(subject, arrays, Path(data or "").name, here, progress))
        except EdgeError as error:
            found.append(unavailable("accuracy", here, error.message))
    return found


def _accuracy(subject: Subject, arrays: Mapping[str, Array] | None, origin: str, here: str, progress: Progress) -> Figure:
    from edgesdk_converters.calibration import Samples

    if arrays is None:
        raise ModelError("no samples to judge on: --data FILE")
    runnable = subject.model if subject.bundle is None else subject.bundle.manifest
    if runnable is None:
        raise ModelError("a layer list has no weights, so that it gives no answers")
    samples = Samples.from_arrays(arrays, runnable.signature, origin)
    if samples.labels is None:
        raise ModelError(f"{origin} has no labels")
    if subject.bundle is None:
        assert subject.model is not None
        right = _right(_model_runs(subject.model), samples, subject.name, progress)
        told = f"top-1 on {origin}, the model in ONNX Runtime"
        return Figure("accuracy", right, board_facts.provenance(), here, told, n=len(samples))
    loaded = runner.load(subject.bundle, runner.RunOptions())
    try:
        right = _right(lambda case: loaded.run(case)[0], samples, subject.name, progress)
    finally:
        loaded.close()
    how = board_facts.provenance() if board_facts.emulator() else loaded.facts.provenance
    return Figure("accuracy", right, how, here, f"top-1 on {origin}, the artefact in {loaded.facts}", n=len(samples))


def _model_runs(model: Model) -> Callable[[Mapping[str, Array]], Array]:
    from edgesdk_converters.reference import Reference

    reference = Reference(model)
    first = model.signature.outputs[0].name

    def run(case: Mapping[str, Array]) -> Array:
        answer: Array = reference.run(case)[first]
        return answer

    return run


def _right(run: Callable[[dict[str, Array]], Array], samples: Samples, name: str, progress: Progress) -> float:
    """Share of the samples whose largest output is that of their label."""
    from edgesdk_converters.accuracy import top1

    answers = []
    for index, case in enumerate(samples):
        if index % 500 == 0:
            progress(f"{name}: accuracy, {index} of {len(samples)} samples")
        answers.append(run(case))
    return float((top1(np.stack(answers)) == samples.labels).mean())


def _layer_list(path: str) -> Subject:
    from .sources import open_layers

    name, layers = open_layers(path)
    return Subject(name, path, "layers", layers=layers)


def _model(source: str, shapes: Mapping[str, Sequence[int]], used: set[str]) -> Subject:
    from edgesdk_converters.cost import layers

    from .sources import open_model

    is_file = source.endswith((".onnx", ".pt2"))
    model = open_model(source, shapes=None if is_file else shapes)
    mine = {spec.name for spec in model.signature.inputs} & set(shapes)
    used |= mine
    if is_file and mine:
        model = model.with_shapes({name: shapes[name] for name in mine})
    return Subject(model.name, source, "model", model.digest, layers(model), model=model)


def _bundle(path: str) -> Subject:
    bundle = bundles.open_bundle(path)
    manifest = bundle.manifest
    if manifest.role == "split":
        raise BundleError(
            f"{path} is a split model, whose two parts run on two devices; compare takes whole ones",
            "give the model that it was made from, and see edgesdk plan",
        )
    notes: tuple[str, ...] = (f"a bundle of {manifest.name} for {manifest.device}, {manifest.precision}",)
    try:
        report = bundle.report()
    except BundleError as error:
        report, notes = None, (*notes, f"its report is missing, so that all figures are estimates: {error.message}")
    model, layers, no_layers = _network(bundle)
    return Subject(
        Path(os.path.abspath(path)).name, path, "bundle", bundle.digest, layers, no_layers, model, bundle, report,
        "" if manifest.precision == "fp32" else manifest.precision, _bits(manifest.recipe), notes,
    )  # fmt: skip


def _network(bundle: Bundle) -> tuple[Model | None, tuple[Layer, ...], str]:
    """The network in a bundle with its layers, or why there are none."""
    import onnx

    from edgesdk_converters.cost import layers
    from edgesdk_converters.model import Model

    file = next((name for name in (bundle.manifest.runtime.file, "model.onnx") if name.endswith(".onnx")), "")
    if file not in bundle.manifest.files:
        return None, (), "the bundle holds no ONNX network whose layers could be estimated"
    try:
        model = Model.from_proto(onnx.load_from_string(bundle.read(file)), bundle.manifest.name)
        return model, layers(model), ""
    except ModelError as error:
        return None, (), error.message


def _bits(recipe: Mapping[str, Any]) -> int:
    """Of the fixed-point pass of a recipe, 0 where there is none or where it takes the target's own."""
    steps = recipe.get("whole", ())
    return next((int(step.get("bits", 0)) for step in steps if step.get("flavour") == "fixed"), 0)
