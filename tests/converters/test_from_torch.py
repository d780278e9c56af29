"""torch modules, programs and callables become Models; nothing is ever unpickled, and no path of this machine leaks."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgesdk_converters.accuracy import relative_error
from edgesdk_converters.errors import ModelError
from edgesdk_converters.from_torch import from_callable, from_module, from_program
from edgesdk_converters.reference import Reference
from edgesdk_converters.signature import Preprocess, Processing

SOURCE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image):
        return self.head(self.drop(self.norm(self.conv(image)).relu().mean((2, 3))))

def net():
    torch.manual_seed(0)
    return Net()

def net_with_examples():
    return net(), (torch.zeros(1, 3, 8, 8),)

def net_that_knows():
    made = net()
    made.example_inputs = (torch.zeros(1, 3, 8, 8),)
    return made

def number():
    return 3

def needs(what):
    return net()

class Branches(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x

def branches():
    return Branches()
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("user")
    (directory / "user_nets_of_tests.py").write_text(SOURCE)
    sys.path.insert(0, str(directory))
    import user_nets_of_tests  # type: ignore[import-not-found]

    yield user_nets_of_tests
    sys.path.remove(str(directory))


def same(module: torch.nn.Module, model: Any, *shape: int) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    name = model.signature.inputs[0].name
    got = Reference(model).run({name: x.numpy()})
    with torch.no_grad():
        wanted = module.eval()(x).numpy()
    assert relative_error(got, dict(zip(got, [wanted], strict=True))) < 1e-5


def test_a_module_is_exported_in_eval_mode_and_left_as_it_was(zoo: Any) -> None:
    module = zoo.net().train()
    module.norm.eval()
    model = from_module(module, (torch.zeros(1, 3, 8, 8),), "net", processing=Processing({"image": Preprocess("NCHW")}))
    assert (module.training, module.drop.training, module.norm.training) == (True, True, False)
    assert [(spec.name, spec.shape) for spec in model.signature.inputs] == [("image", (1, 3, 8, 8))]
    assert model.signature.outputs[0].shape == (1, 5)
    assert model.signature.inputs[0].preprocess == Preprocess("NCHW")
    assert model.opset == 20
    assert (model.history[0].name, model.history[0].options) == ("torch export", {"opset": 20})
    same(module, model, 1, 3, 8, 8)


def test_inputs_can_be_named(zoo: Any) -> None:
    model = from_module(zoo.net(), (torch.zeros(2, 3, 8, 8),), "net", input_names=["x"])
    assert [spec.name for spec in model.signature.inputs] == ["x"]


def test_two_exports_are_identical_and_name_nothing_of_this_machine(zoo: Any) -> None:
    first = from_module(zoo.net(), (torch.zeros(1, 3, 8, 8),), "net")
    second = from_module(zoo.net(), (torch.zeros(1, 3, 8, 8),), "net")
    data = first.to_bytes()
    assert data == second.to_bytes()
    for trace in (
        b"user_nets_of_tests.py",
        b"site-packages",
        os.getcwd().encode(),
        b"/tmp",
        b'File "',
        socket.gethostname().encode(),
    ):
        assert trace not in data, trace


def test_a_saved_program_is_exported(zoo: Any, tmp_path: Path) -> None:
    module = zoo.net().eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 8, 8),)), tmp_path / "net.pt2")
    model = from_program(tmp_path / "net.pt2")
    assert model.name == "net"
    same(module, model, 1, 3, 8, 8)


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, (os.environ["BOMB_OF_TESTS"],))


def test_pickles_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zoo: Any) -> None:
    monkeypatch.setenv("BOMB_OF_TESTS", str(tmp_path / "went off"))
    (tmp_path / "a.pt2").write_bytes(pickle.dumps(Bomb()))
    torch.save(zoo.net(), tmp_path / "module.pt2")
    torch.save(Bomb(), tmp_path / "b.pt2")
    for name in ("a.pt2", "b.pt2", "module.pt2"):
        with pytest.raises(ModelError, match=r"is no readable \.pt2 program"):
            from_program(tmp_path / name)
        with pytest.raises(ModelError, match="is no readable safetensors file"):
            from_callable("user_nets_of_tests:net_with_examples", weights=tmp_path / name)
    assert not (tmp_path / "went off").exists()
    with pytest.raises(ModelError, match="does not exist"):
        from_program(tmp_path / "absent.pt2")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ModelError, match=r"is no readable \.pt2 program"):
        from_program(tmp_path / "text.pt2")


@pytest.mark.parametrize("name", ["net_with_examples", "net_that_knows"])
def test_a_callable_brings_its_example_inputs(zoo: Any, name: str) -> None:
    model = from_callable(f"user_nets_of_tests:{name}")
    assert (model.name, model.signature.inputs[0].name) == (name, "image")
    same(zoo.net(), model, 1, 3, 8, 8)


def test_shapes_stand_in_for_example_inputs_and_name_the_inputs(zoo: Any) -> None:
    model = from_callable("user_nets_of_tests:net", shapes={"x": [2, 3, 9, 9]})
    assert [(spec.name, spec.shape) for spec in model.signature.inputs] == [("x", (2, 3, 9, 9))]
    same(zoo.net(), model, 2, 3, 9, 9)


def test_weights_come_as_safetensors(zoo: Any, tmp_path: Path) -> None:
    torch.manual_seed(7)
    other = zoo.Net()
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    model = from_callable("user_nets_of_tests:net_with_examples", weights=tmp_path / "w.safetensors")
    same(other, model, 1, 3, 8, 8)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match="does not fit the module"):
        from_callable("user_nets_of_tests:net_with_examples", weights=tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match="is no readable safetensors file"):
        from_callable("user_nets_of_tests:net_with_examples", weights=tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("location", "shapes", "said"),
    [
        ("user_nets_of_tests:net", None, "gives no example inputs"),
        ("user_nets_of_tests:number", None, "returned int; a torch.nn.Module is needed"),
        ("user_nets_of_tests:needs", None, "cannot be called without arguments"),
        ("user_nets_of_tests:absent", None, "has no attribute 'absent'"),
        ("no_such_module_at_all:net", None, "No module named"),
        ("user_nets_of_tests", None, "names no callable"),
        (":net", None, "names no callable"),
        ("user_nets_of_tests:net", {"x": [1, 4, 8, 8]}, "torch cannot export the torch module 'net'"),
        ("user_nets_of_tests:net", {"x": [1, 3, 1, 1]}, "torch cannot export the torch module 'net'"),
        ("user_nets_of_tests:net", {"x": [1, 3, 8, 8], "z": [1]}, "torch cannot export the torch module 'net'"),
        ("user_nets_of_tests:net", {"x": [1, 3, -8, 8]}, "allowed: sizes of 1 or more"),
        ("user_nets_of_tests:branches", {"x": [3]}, "torch cannot export the torch module 'branches'"),
    ],
)
def test_what_cannot_be_exported_says_why_in_one_line(zoo: Any, location: str, shapes: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        from_callable(location, shapes=shapes)
    assert len(caught.value.line()) < 600


def test_exporting_prints_nothing(zoo: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from_module(zoo.net(), (torch.zeros(1, 3, 8, 8),), "net")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_weights_are_those_of_the_module(zoo: Any) -> None:
    module = zoo.net()
    model = from_module(module, (torch.zeros(1, 3, 8, 8),), "net")
    stored = sum(int(np.prod(t.dims)) for t in model.proto.graph.initializer if t.data_type == 1)
    assert stored >= sum(p.numel() for p in module.head.parameters()) + module.conv.weight.numel()
