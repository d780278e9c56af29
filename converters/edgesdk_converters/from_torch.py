"""A torch module or exported program becomes a Model. torch.load is never used: weights come as safetensors or in a .pt2."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import logging
import os
import pickle
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import EdgeError, MissingExtra, ModelError
from .model import Model, Step
from .signature import Processing

try:
    import onnx
    import torch
except ImportError as _error:
    raise MissingExtra("torch", "torch") from _error

OPSET = 20
_UNREADABLE = (
    RuntimeError, ValueError, LookupError, OSError, AssertionError, EOFError, AttributeError, TypeError, ImportError,
    zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip


def from_module(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    name: str,
    *,
    input_names: Sequence[str] | None = None,
    processing: Processing | None = None,
) -> Model:
    """A torch module in eval mode, exported for exactly the shapes of `example_inputs`.

    Inputs are named after the parameters of `forward` unless `input_names` says otherwise. Raises ModelError with torch's
    reason when the module cannot be exported.
    """
    training = [part for part in module.modules() if part.training]
    try:
        return _export(module.eval(), tuple(example_inputs), name, input_names, processing, "torch module")
    finally:
        for part in training:
            part.training = True


def from_program(path: str | os.PathLike[str], *, processing: Processing | None = None) -> Model:
    """A program saved by `torch.export.save` (.pt2), with the shapes it was exported for."""
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist or is no file", "save one with torch.export.save(program, PATH)")
    try:
        with _quiet():
            program = torch.export.load(path)
    except _UNREADABLE as error:
        raise ModelError(
            f"{path} is no readable .pt2 program: {_first_line(error)}",
            f"save it again with torch.export.save under torch {torch.__version__}",
        ) from error
    return _export(program, None, path.stem, None, processing, "torch program")


def from_callable(
    location: str,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    weights: str | os.PathLike[str] | None = None,
    processing: Processing | None = None,
) -> Model:
    """The module that `package.module:callable` returns; the working directory is searched too.

    The callable takes no arguments and returns a torch.nn.Module, or (module, example inputs). Example inputs come from
    there, from an attribute `example_inputs` of the module, or as zeros (float32) from `shapes`, in the order of
    forward's parameters. `weights` is a .safetensors file for load_state_dict.
    """
    made = call(location)
    attribute = location.partition(":")[2]
    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{location} returned {type(module).__name__}; a torch.nn.Module is needed",
            "return the module, or (module, example inputs)",
        )
    if weights is not None:
        _load_weights(module, Path(weights))
    examples = examples if examples is not None else getattr(module, "example_inputs", None)
    names: Sequence[str] | None = None
    if shapes:
        for input_name, shape in shapes.items():
            if any(size < 1 for size in shape):
                raise ModelError(f"--shape gives input {input_name!r} the shape {tuple(shape)}; allowed: sizes of 1 or more")
        examples = tuple(torch.zeros(tuple(shape)) for shape in shapes.values())
        names = tuple(shapes)
    if examples is None:
        raise ModelError(
            f"{location} gives no example inputs", "give --shape x=1x3x224x224, or set module.example_inputs to a tuple"
        )
    return from_module(module, tuple(examples), attribute, input_names=names, processing=processing)


def call(location: str, *given: Any) -> Any:
    """What the user's own function at `package.module:callable` returns; the working directory is searched too.

    Whatever his code raises becomes a ModelError.
    """
    module_name, _, attribute = location.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"{location!r} names no callable", "give package.module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except EdgeError:
        raise
    except ImportError as error:
        raise ModelError(f"{location}: {error}", "run where the module can be imported, or set PYTHONPATH") from error
    except Exception as error:
        told = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"{location}: importing {module_name} raised {told}", f"repair {module_name}") from error
    factory = getattr(found, attribute, None)
    if not callable(factory):
        what = (
            f"has no attribute {attribute!r}"
            if factory is None
            else f"holds a {type(factory).__name__} there, which cannot be called"
        )
        raise ModelError(f"{location}: module {module_name} {what}", "give package.module:callable")
    how = f"with {len(given)} arguments" if given else "without arguments"
    try:
        inspect.signature(factory).bind(*given)
    except TypeError as error:
        wrapped = f"takes {len(given) or 'none'}"
        raise ModelError(f"{location} cannot be called {how}: {error}", f"wrap it in a function that {wrapped}") from error
    except ValueError:
        pass  # a built-in without a signature: calling it tells
    try:
        return factory(*given)
    except EdgeError:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelError(f"{location} raised {told}", f"repair the callable; it is called {how}") from error


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra("torch", "safetensors") from error
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is no readable safetensors file: {_first_line(error)}", "convert with safetensors.torch.save_file"
        ) from error
    except RuntimeError as error:
        raise ModelError(
            f"{path} does not fit the module: {' '.join(str(error).split())[:300]}", "give the weights that belong to this module"
        ) from error


def _export(
    module: Any,
    examples: tuple[torch.Tensor, ...] | None,
    name: str,
    input_names: Sequence[str] | None,
    processing: Processing | None,
    kind: str,
) -> Model:
    try:
        with _quiet():
            exported = torch.onnx.export(
                module,
                examples or (),
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names,
                verbose=False,
                optimize=True,
            )
            assert exported is not None
            proto = exported.model_proto
    except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, AssertionError) as error:
        cause = error.__cause__ or error
        raise ModelError(
            f"torch cannot export the {kind} {name!r}: {_first_line(cause)}", "see torch.onnx.export's documentation"
        ) from error
    _strip(proto)
    history = (Step("torch export", {"opset": OPSET}, f"{kind}, torch {torch.__version__.split('+')[0]}"),)
    return Model.from_proto(proto, name, processing=processing, history=history)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what the exporter notes about source lines: it names paths of this machine and differs between runs."""
    from . import graph as graphs

    proto.ClearField("metadata_props")
    proto.doc_string = ""
    for function in proto.functions:
        for part in (function, *function.node, *function.value_info):
            part.ClearField("metadata_props")
            part.doc_string = ""
    for graph in graphs.all_graphs(proto):
        graph.ClearField("metadata_props")
        graph.doc_string = ""
        for entry in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            entry.ClearField("metadata_props")
            entry.doc_string = ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints progress, warns and logs; none of it is for our users."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
