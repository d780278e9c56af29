"""Export: a model through its recipe and target into a bundle whose numbers were checked on the artefact itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from edgesdk_converters import accuracy, fields
from edgesdk_converters.errors import ContractBroken, DeviceError, ModelError, RecipeError, TargetError
from edgesdk_converters.recipe import Recipe
from edgesdk_targets import bundle as bundles
from edgesdk_targets import efficiency, runner
from edgesdk_targets import link as links
from edgesdk_targets.bundle import Bundle, Manifest
from edgesdk_targets.figure import Figure, counted
from edgesdk_targets.measure import peak_memory_bytes
from edgesdk_targets.report import Report
from edgesdk_targets.target import Segment, Target, make

from . import __version__, choose, splitting
from .candidate import Attempt, Candidate, Draft
from .costing import Costing
from .ranking import Basis, Ranking, basis, told
from .sources import open_model
from .split_choice import Asked, head_of, split_export, tail_of
from .splitting import Cutting, Pair, Splitting
from .trial import INTEGER, Trial, artefact_size, known_of, source_size

if TYPE_CHECKING:
    from edgesdk_converters.cost import Layer
    from edgesdk_converters.model import Model, Step
    from edgesdk_converters.passes import Pass
    from edgesdk_converters.signature import Processing
    from edgesdk_targets.link import Link

Array = NDArray[Any]
Task = Literal["auto", "classify", "numeric"]
PARITY = {"fp32": 1e-4, "fp16": 2e-2, "w8": 0.1, "int8": 0.3, "w4": 0.5, "fixed": 0.5}
"""Relative error that an export may have against its source when the user states no bound of his own.

Those of integers catch what is broken, and promise nothing: for that there is --max-drop.
"""
PARITY_LEARNED = 1.0
"""That of a network whose front has learned to be another: an answer of zeros would have as much."""
LOSSY = ("payload", "bottleneck")
"""Passes after which less crosses than was there."""
SMALLER = ("prune", "low_rank")
"""Passes after which the network has other layers: what comes of that is told beside the model that came in."""
ASSUMED_MAX_DROP = 1.0
"""Points that integers may lose on labelled data when the user states no bound of his own."""


@dataclass(frozen=True)
class Prepared:
    """An export that is finished but not written."""

    manifest: Manifest
    files: Mapping[str, bytes]
    report: Report
    recipe: Recipe
    layers: tuple[Layer, ...] = ()

    def write(self, out: str | os.PathLike[str] | None = None) -> Bundle:
        """Put the bundle at `out` (default NAME-DEVICE.edge) and the report beside it."""
        path = Path(out) if out is not None else default_path(self.manifest.name, self.manifest.device)
        draft = bundles.draft(path, self.manifest, self.files)
        rows = (*self.report.rows, counted("bundle_bytes", draft.payload_bytes, "all files of the bundle"))
        report = replace(self.report, bundle=draft.digest, rows=rows)
        return bundles.write(path, self.manifest, self.files, report.to_bytes())


def export(
    model: str | os.PathLike[str] | Model,
    *,
    target: str | None = None,
    device: str | None = None,
    out: str | os.PathLike[str] | None = None,
    precision: str = "",
    recipe: str | os.PathLike[str] | Recipe | None = None,
    settings: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    weights: str | os.PathLike[str] | None = None,
    processing: Processing | None = None,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    train: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    max_drop: float | None = None,
    max_slice_drop: float | None = None,
    max_relative_error: float | None = None,
    task: Task = "auto",
    metric: str = "",
    prune: float | None = None,
    low_rank: float | None = None,
    finetune: int = 0,
    training_device: str = "cpu",
    split: str | None = None,
    bottleneck: int | Sequence[int] | None = None,
    payload_bits: int = 32,
    head_share: float = 0.25,
    tail_target: str = "server",
    server: str | None = None,
    link: str | None = None,
    on: str | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> Bundle:
    """Make a bundle for a target from a model and write it to `out`, with its report beside it.

    `precision` is one of the target's (default fp32, of an FPGA fixed) or "auto": the fastest that holds it, by time where this
    machine is the device (target server, or `on="local"`), else by instructions where the emulator is set up (`on="emulator"`
    sets it up), else by estimate. `recipe` is a TOML file, or a bundle whose
    recipe is followed again.
    `prune` (0..1) removes channels until that share of the weights is gone (`settings={"prune.budget": "macs"}`: of the MACs,
    "cost": of what the target takes), `low_rank` factorises layers to the same end; `finetune` epochs on `train` repair either,
    on `training_device` (torch's name of it).
    `split` cuts the network at a tensor (or "auto": where the fewest bytes cross, of the cuts whose head has at most
    `head_share` of the MACs): the head is made for the device, in `precision`, the tail for `tail_target` in fp32;
    `payload_bits` (2 to 8) quantises and packs what crosses. `bottleneck` (channels; several are operating points) puts a learned
    encoder in the place of all before the tensor, trained on `train`, and cuts behind it; then 8 bits are the default.
    `link` ("10mbit,20ms", "wifi") lets the time over it decide where "auto" cuts, with the tail on the device `server`.
    The bundle holds both as bundles of their own, and the contract is held by both together.
    `max_drop` is in percentage points of top-1 (or of `metric`, "package.module:callable" of outputs and labels). Raises
    ContractBroken when the artefact is further from the source than was promised; then nothing is written and an older
    bundle stays. Other errors are EdgeErrors too.
    """
    if out is not None:
        bundles.check_place(Path(os.path.abspath(out)))
    prepared = prepare(
        model, target=target, device=device, precision=precision, recipe=recipe, settings=settings, shapes=shapes,
        constants=constants, weights=weights, processing=processing, data=data, train=train,
        max_drop=max_drop, max_slice_drop=max_slice_drop,
        max_relative_error=max_relative_error, task=task, metric=metric, prune=prune, low_rank=low_rank,
        finetune=finetune, training_device=training_device, split=split, bottleneck=bottleneck,
        payload_bits=payload_bits, head_share=head_share,
        tail_target=tail_target, server=server, link=link, on=on, progress=progress,
    )  # fmt: skip
    progress("writing the bundle")
    return prepared.write(out)


def prepare(
    model: str | os.PathLike[str] | Model,
    *,
    target: str | None = None,
    device: str | None = None,
    precision: str = "",
    recipe: str | os.PathLike[str] | Recipe | None = None,
    settings: Mapping[str, str] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    constants: Mapping[str, float] | None = None,
    weights: str | os.PathLike[str] | None = None,
    processing: Processing | None = None,
    data: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    train: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    max_drop: float | None = None,
    max_slice_drop: float | None = None,
    max_relative_error: float | None = None,
    task: Task = "auto",
    metric: str = "",
    prune: float | None = None,
    low_rank: float | None = None,
    finetune: int = 0,
    training_device: str = "cpu",
    split: str | None = None,
    bottleneck: int | Sequence[int] | None = None,
    payload_bits: int = 32,
    head_share: float = 0.25,
    tail_target: str = "server",
    server: str | None = None,
    link: str | None = None,
    on: str | None = None,
    progress: Callable[[str], None] = runner.silent,
) -> Prepared:
    """All of `export` but writing."""
    begin = time.perf_counter()
    contract = accuracy.Contract(max_drop, max_slice_drop, max_relative_error, task, metric)
    settings = dict(settings or {})
    backend = make(target, device, {key: value for key, value in settings.items() if "." not in key})
    if backend.device.estimate_only:
        raise DeviceError(
            f"nothing can be exported to {backend.device.name}: {backend.device.estimate_only}",
            f"edgesdk estimate MODEL --device {backend.device.name} gives an estimate",
        )
    for_passes = {key: value for key, value in settings.items() if "." in key}
    given, stated = _recipe(recipe)
    precision = precision or stated or backend.default_precision
    by = basis(backend, on)
    shrinking = _shrinking(prune, low_rank, finetune)
    if bottleneck is not None:
        shrinking = (*shrinking, _bottleneck(bottleneck, split, payload_bits))
        split, payload_bits = splitting.AUTO if split is None else split, 32  # its bits are packed by the pass itself
    if shrinking and given is not None:
        told = "--prune, --low-rank or --bottleneck and a recipe were given; a recipe says all"
        raise RecipeError(told, f"put the pass {shrinking[0].name} into the recipe")
    if given is not None and precision == choose.AUTO:
        raise RecipeError("--precision auto and a recipe were given; a recipe says all", "leave one of them out")
    candidates = choose.candidates(backend, precision, given, for_passes, shrinking)
    if split is not None and not split.strip():
        raise RecipeError("--split names no tensor", "give --split auto, or a tensor that edgesdk cuts MODEL --fold lists")
    divided = split is not None or (given is not None and bool(given.split))
    if not divided and (link is not None or server is not None):
        raise RecipeError("--link or --server without --split: nothing crosses", "give --split auto; edgesdk plan compares ways")
    if not divided and payload_bits < 32:
        raise RecipeError("--payload-bits without --split: nothing crosses", "give --split auto, or the name of a tensor")
    tail = tail_of(tail_target, server, precision, given, for_passes) if divided else None
    progress("loading the model")
    source = open_model(model, shapes=shapes, constants=constants, weights=weights, processing=processing)
    if not source.signature.inputs:
        raise ModelError(f"{source.name} has no inputs, so its answer is a constant; at least one is needed")
    if tail is None:
        _refuse_early(backend, candidates, source, progress)
    if given is None and tail is None:
        candidates = choose.fitting(candidates, source)
    over = None if link is None else _link(link, split, bottleneck, given)
    how = Splitting(splitting.AUTO if split is None else split, payload_bits, head_share, over)
    every = candidates if tail is None else (*candidates, *tail.candidates)
    calibrates = any(candidate.needs_calibration for candidate in every) or how.bits < 32
    trial = Trial(source, contract, data, train, progress, calibrates=calibrates)
    trial.width_multiple, trial.training_device = backend.width_multiple, training_device
    if any(getattr(step, "budget", "") == "cost" for candidate in candidates for step in candidate.recipe.whole):
        progress("costing the source model")
        trial.cost = Costing(backend, by, trial.cases[0], progress).of(source)
    lossy = how.bits < 32 or any(step.name in LOSSY for candidate in candidates for step in candidate.recipe.whole)
    trial.assume(ASSUMED_MAX_DROP, {candidate.precision for candidate in every} | ({"int8"} if lossy else set()))
    if precision == choose.AUTO and not trial.promised:
        candidates = tuple(candidate for candidate in candidates if candidate.precision not in INTEGER)
        trial.notes.append("integers were not tried: no accuracy is promised (--data with labels, --max-drop)")
    if tail is not None:
        if not trial.promised:
            tail = tail.in_float()
        head = head_of(candidates, given, 1 + len(shrinking), backend, by)
        head = replace(head, asked=on is not None)
        return _to_its_end(_split(head, tail, candidates[0].recipe, how, trial, begin), begin)

    def build(candidate: Candidate) -> Attempt:
        return _build(candidate, backend, trial, begin)

    made = _completed(choose.choose(candidates, build, trial, backend, by, asked=on is not None), backend, progress)
    smaller = any(step.name in SMALLER for step in made.recipe.whole)
    if smaller and by != "estimated":
        made = _beside_source(made, backend, trial, by, asked=on is not None)
    return _to_its_end(made, begin)


def _completed(made: Prepared, backend: Target, progress: Callable[[str], None]) -> Prepared:
    """With what the target's own tools make and say of it."""
    draft = bundles.draft(Path(made.manifest.name), made.manifest, made.files)
    found = backend.complete(draft, progress)
    files = {**made.files, **found.files}
    rows = _with(made.report.rows, artefact_size(backend, files, made.manifest.runtime))
    rows = _with(rows, *efficiency.compression(rows))
    report = replace(made.report, rows=(*rows, *found.rows), notes=(*made.report.notes, *found.notes))
    return replace(made, files=files, report=report)


def _to_its_end(made: Prepared, begin: float) -> Prepared:
    """With the time and memory of all of it: they were noted when the artefact was held against its source."""
    now = {"export_s": time.perf_counter() - begin, "export_peak_memory_bytes": peak_memory_bytes()}
    rows = tuple(replace(row, value=now[row.name]) if row.name in now else row for row in made.report.rows)
    return replace(made, report=replace(made.report, rows=rows))


def _with(rows: Sequence[Figure], *newer: Figure) -> tuple[Figure, ...]:
    """The rows, those of the whole that have the name of a newer one replaced by it."""
    named = {row.name: row for row in newer}
    return tuple(named.get(row.name, row) if row.layer is None and row.segment == "whole" else row for row in rows)


def _refuse_early(backend: Target, candidates: Sequence[Candidate], model: Model, progress: Callable[[str], None]) -> None:
    """Raise what the target would say of the model after minutes of passes, where it says so of every candidate."""
    progress(f"checking the source against {backend.device.name}")
    refused: list[TargetError | RecipeError] = []
    for candidate in candidates:
        try:
            backend.check_source(model, candidate.recipe.whole)
        except (TargetError, RecipeError) as error:
            refused.append(error)
    if len(refused) == len(candidates):
        raise refused[0]


def _split(head: Asked, tail: Asked, first: Recipe, how: Splitting, trial: Trial, begin: float) -> Prepared:
    """The export of a network in two parts; `first` has the passes before the cut, and the cut where it is known."""
    cutting = Cutting((head.backend, tail.backend), head.before, first.split, how, trial)
    for part, plain in zip((head, tail), cutting.plain, strict=True):  # a part is known once it is cut, and not before
        _refuse_early(part.backend, part.candidates, plain, trial.progress)
    stated = trial.contract.max_relative_error

    def finish(pair: Pair) -> Prepared:
        bounds = [PARITY.get(precision, 2e-2) for precision in (*pair.precisions, *(["int8"] if cutting.packed else []))]
        bound = PARITY_LEARNED if cutting.learned is not None else max(bounds)
        manifest, files, report = pair.finished(bound if stated is None else stated, begin)
        return Prepared(manifest, files, report, pair.recipe)

    return split_export(cutting, head, tail, finish, f"edgesdk {__version__}")


def _beside_source(made: Prepared, backend: Target, trial: Trial, by: Basis, *, asked: bool) -> Prepared:
    """With its speed beside that of the model that came in, in fp32: a smaller network is not a faster one for that."""
    recipe = Recipe.from_plain(backend.recipe("fp32"), f"target {backend.name}")
    whole = trial.convert(recipe, None)
    compiled = backend.compile(Segment(whole))
    manifest = Manifest(
        name=trial.source.name, target=backend.name, device=backend.device.name, precision="fp32",
        signature=whole.signature, runtime=compiled.runtime,
    )  # fmt: skip
    base = Attempt(Candidate("the source", "fp32", recipe), broken=Draft(manifest, compiled.files, _layers(whole)))
    final = Attempt(Candidate("the result", made.manifest.precision, made.recipe), made)
    (timed,) = Ranking(by, backend, base, trial, asked=asked).ranked([final])
    if timed.speed is None or timed.speed.value is None:
        return made
    speed = replace(timed.speed, name=f"source_{timed.speed.name}", method=f"source: {timed.speed.method}")
    beside = f"beside the model that came in: {told(speed)}"
    if timed.gain < 1:
        beside = f"SLOWER than the model that came in: {told(speed)}; --set prune.budget=cost goes by what the target takes"
    report = made.report
    report = replace(report, rows=(*report.rows, speed), notes=(*report.notes, beside))
    return replace(made, report=report)


def _build(candidate: Candidate, backend: Target, trial: Trial, begin: float) -> Attempt:
    """One candidate from its source to an artefact that was checked, and holds the contract or not."""
    source, contract, progress = trial.source, trial.contract, trial.progress
    precision = candidate.precision
    bound = contract.max_relative_error if contract.max_relative_error is not None else PARITY.get(precision, 2e-2)
    converted = trial.convert(candidate.recipe, bound if contract.max_drop_points is None else None)
    recipe = _settled(candidate.recipe, converted.history)
    segment = Segment(converted)
    progress(f"checking against {backend.device.name}")
    backend.check(segment)
    progress(f"compiling for {backend.device.name}")
    compiled = backend.compile(segment)
    manifest = Manifest(
        name=source.name,
        target=backend.name,
        device=backend.device.name,
        precision=precision,
        signature=converted.signature,
        runtime=compiled.runtime,
        model={
            "source": source.digest,
            "sha256": converted.digest,
            "opset": converted.opset,
            "ir": converted.proto.ir_version,
        },
        recipe=recipe.to_plain(),
        history=tuple(fields.plain(step) for step in converted.history),
        plan=compiled.plan,
        notes=compiled.notes,
        made_by=f"edgesdk {__version__}",
    )
    layers = _layers(converted)
    try:
        known = [*known_of(backend, segment, compiled, precision), source_size(source)]
        manifest, files, report = trial.finish(compiled, manifest, bound, begin, known)
    except ContractBroken as error:
        return Attempt(candidate, error=error, broken=Draft(manifest, compiled.files, layers))
    return Attempt(candidate, Prepared(manifest, files, report, recipe, layers))


def _link(text: str, split: str | None, bottleneck: object, recipe: Recipe | None) -> Link:
    """The link by which `--split auto` chooses. Raises RecipeError where there is nothing to choose, LinkError for a bad one."""
    found = links.parse(text)
    found.for_session()
    if split is None and bottleneck is None and not (recipe is not None and recipe.split):
        return found  # told below, with --server
    if bottleneck is not None or any(step.name == "bottleneck" for step in (recipe.whole if recipe is not None else ())):
        told = "--link with a bottleneck: where it sits is chosen by bytes and work before it is trained, not by a link"
        raise RecipeError(told, "leave --link out; edgesdk plan MODEL --bundle BUNDLE compares it over links once it is made")
    if split != splitting.AUTO:
        told = f"--link with a cut that is given already ({split or ', '.join(recipe.split if recipe and recipe.split else ())})"
        raise RecipeError(told, "give --split auto, or leave --link out; edgesdk plan compares ways")
    return found


def _shrinking(prune: float | None, low_rank: float | None, finetune: int) -> tuple[Pass, ...]:
    """The passes that make a model smaller before its precision is changed, each followed by its training."""
    found: list[Pass] = []
    if prune is not None:
        from edgesdk_converters.prune import Prune

        found.append(Prune(removed=prune, finetune=finetune))
    if low_rank is not None:
        from edgesdk_converters.low_rank import LowRank

        found.append(LowRank(removed=low_rank, finetune=finetune))
    if finetune and not found:
        raise RecipeError("--finetune without a pass to repair", "give --prune or --low-rank FRACTION; --qat trains integers")
    return tuple(found)


def _bottleneck(channels: int | Sequence[int], split: str | None, bits: int) -> Pass:
    from edgesdk_converters.bottleneck import Bottleneck

    points = (channels,) if isinstance(channels, int) else tuple(channels)
    at = "" if split in (None, splitting.AUTO) else str(split)
    return Bottleneck(at=at, channels=points, bits=bits if bits < 32 else 8)


def _settled(recipe: Recipe, history: Sequence[Step]) -> Recipe:
    """The recipe with what measuring decided written down, so that it gives the same again."""
    taken = tuple(step.options["taken"] for step in history if step.name == "prune")
    return Recipe(
        tuple(
            replace(step, taken=taken) if getattr(step, "budget", "") == "cost" else step  # type: ignore[type-var]
            for step in recipe.whole
        )
    )


def _layers(model: Model) -> tuple[Layer, ...]:
    """What estimates are made from; nothing where shapes are not static."""
    from edgesdk_converters.cost import layers

    try:
        return layers(model)
    except ModelError:
        return ()


def default_path(name: str, device: str) -> Path:
    """NAME-DEVICE.edge in the working directory."""
    return Path(f"{name}-{device}.edge")


def _recipe(recipe: str | os.PathLike[str] | Recipe | None) -> tuple[Recipe | None, str]:
    """The recipe to follow and the precision stated with it: a TOML file's, or that by which a bundle was made."""
    if recipe is None or isinstance(recipe, Recipe):
        return recipe, ""
    path = Path(recipe)
    if path.suffix in (".edge", ".zip") or path.is_dir():
        made = bundles.open_bundle(path).manifest
        return Recipe.from_plain(made.recipe, f"the recipe of {path}"), made.precision
    return Recipe.load(path), ""
