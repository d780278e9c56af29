"""Real networks as torch modules: the same function, gradients in every weight, and torch.export takes them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from edgesdk.sources import open_model
from edgesdk_converters import find
from edgesdk_converters.accuracy import distance
from edgesdk_converters.model import Model, Step
from edgesdk_converters.passes import Given
from edgesdk_converters.reference import Reference
from edgesdk_converters.to_torch import to_torch, with_weights

from ..fashion import samples
from .test_real_models import CONSTANTS, MODELS, QUICK, SHAPES, example

BOUNDS = {"basic-pitch": 1e-3, "magika": 5e-5}
"""Where 1e-5 is beyond fp32: ONNX Runtime itself is 4.5e-4 from double precision on basic-pitch's logarithms."""


@pytest.fixture(scope="module")
def real_models() -> ModuleType:
    return example("real_models")


def opened(real_models: ModuleType, name: str) -> tuple[Model, list[dict[str, np.ndarray]]]:
    """A model with static shapes, and four inputs for it."""
    if name.startswith("fashion_"):
        images = samples("train", 0, 4)["image"]
        return Model.load(MODELS.parents[1] / "examples" / "fashion" / f"{name}.onnx"), [{"image": one[None]} for one in images]
    model = open_model(MODELS / f"{name}.onnx", shapes=SHAPES.get(name), constants=CONSTANTS.get(name))
    if CONSTANTS.get(name):  # what they decide folds away
        model = find("fold")()(model, Given(model, None))  # type: ignore[arg-type]
    names = [spec.name for spec in model.signature.inputs]
    return model, [{key: feed[key] for key in names} for feed in real_models.sample_inputs(name, 4, 0)]


@pytest.mark.parametrize("name", [*QUICK, "fashion_cnn", "fashion_mobilenet", "fashion_resnet", "fashion_vit"])
def test_a_real_network_can_learn_again(real_models: ModuleType, name: str) -> None:
    model, feeds = opened(real_models, name)
    made = to_torch(model)
    rows = [tuple(torch.as_tensor(feed[spec.name]) for spec in model.signature.inputs) for feed in feeds]

    def run(row: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        found = made(*row)
        return found if isinstance(found, tuple) else (found,)

    with torch.no_grad():
        got = [{key: value.numpy() for key, value in zip(made.results, run(row), strict=True)} for row in rows]
    assert distance(got, map(Reference(model).run, feeds)).relative <= BOUNDS.get(name, 1e-5)

    generator = torch.Generator().manual_seed(0)
    for row in rows:
        floats = [value for value in run(row) if value.is_floating_point()]
        sum((value * torch.randn(value.shape, generator=generator)).sum() for value in floats).backward()
    parameters = dict(made.named_parameters())
    assert parameters and [key for key, p in parameters.items() if p.grad is None or not bool((p.grad != 0).any())] == []

    exported = torch.export.export(made, rows[0]).module()
    with torch.no_grad():
        for mine, theirs in zip(torch.utils._pytree.tree_leaves(exported(*rows[0])), run(rows[0]), strict=True):
            torch.testing.assert_close(mine, theirs)

    back = with_weights(model, made.weights(), Step("train"))
    assert back.proto.graph.SerializeToString() == model.proto.graph.SerializeToString()
