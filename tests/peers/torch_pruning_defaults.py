"""Torch-Pruning 1.6 as its own examples use it: python torch_pruning_defaults.py NET MODEL TRAIN WAY OUT.

NET is one of examples/train_fashion.py, which gives the torch module; MODEL (ONNX) has its weights. WAY is `magnitude` (each
layer loses half of its channels) or `taylor` (half of all, by the loss on the labelled samples of TRAIN), or either with
`-inside` (of the ViT, attention and the hidden layers of its MLPs only, which its ViT example calls bottleneck).
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
import torch_pruning as tp
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import train_fashion as fashion

RATIO, ROUND_TO, PARITY = 0.5, 8, 1e-4
net, source, train, way, out = sys.argv[1:]
torch.set_num_threads(1)


class Split(torch.nn.Module):
    """Queries, keys and values by layers of their own, as its ViT example has them: it does not follow one product in chunks."""

    def __init__(self, whole):
        super().__init__()
        parts = [part.detach().chunk(3) for part in (whole.weight, whole.bias)]
        self.parts = torch.nn.ModuleList(torch.nn.Linear(*weight.T.shape) for weight in parts[0])
        with torch.no_grad():
            for part, weight, bias in zip(self.parts, *parts, strict=True):
                part.weight.copy_(weight), part.bias.copy_(bias)

    def forward(self, x):
        return tuple(part(x) for part in self.parts)


class Whole(torch.nn.Module):
    """The same by one product again, which runs faster."""

    def __init__(self, split):
        super().__init__()
        weights = torch.cat([part.weight.detach() for part in split.parts])
        self.whole = torch.nn.Linear(*weights.T.shape)
        with torch.no_grad():
            self.whole.weight.copy_(weights), self.whole.bias.copy_(torch.cat([part.bias for part in split.parts]))

    def forward(self, x):
        return self.whole(x).chunk(3, dim=-1)


def attention(self, x):
    """As EncoderLayer has it, of whatever width queries and values are after pruning; the scale stays that of the whole width."""
    n, tokens, _ = x.shape
    q, k, v = (part.reshape(n, tokens, self.heads, -1).transpose(1, 2) for part in self.qkv(x))
    weights = torch.softmax((q * self.scale) @ k.transpose(-2, -1), dim=-1)
    return self.project((weights @ v).transpose(1, 2).reshape(n, tokens, -1))


fashion.EncoderLayer.attention = attention


def stored(proto, name):
    """A parameter of the module as the graph has it: by name, folded into a convolution, or beside its bias."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    if name in tensors:
        return tensors[name]
    layer = name.rpartition(".")[0]
    for node in proto.graph.node:
        if node.op_type == "Gemm" and node.input[2] == f"{layer}.bias":
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            return tensors[node.input[1]] if turned else tensors[node.input[1]].T
        if node.op_type == "Add" and f"{layer}.bias" in node.input:
            other = next(value for value in node.input if value != f"{layer}.bias")
            return next(tensors[product.input[1]].T for product in proto.graph.node if other in product.output)
    raise KeyError(name)


def loaded(proto):
    """The module with the graph's weights; batch normalisation, which the graph folded, does nothing but add a bias."""
    model = fashion.RECIPES[net].build(fashion.RECIPES[net].width).eval()
    last = None
    with torch.no_grad():
        for path, module in model.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.zero_(), module.running_var.fill_(1 - module.eps), module.weight.fill_(1)
                module.bias.copy_(torch.tensor(stored(proto, f"{last}.weight_bias")))
                continue
            for name, value in module.named_parameters(recurse=False):
                value.copy_(torch.tensor(stored(proto, f"{path}.{name}".lstrip("."))))
            if isinstance(module, torch.nn.Conv2d):
                last = path
    for layer in layers_of(model):
        layer.scale = (layer.qkv.out_features // (3 * layer.heads)) ** -0.5
        layer.qkv = Split(layer.qkv)
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, fashion.EncoderLayer)]


def pruned(model, images, labels):
    kind, _, inside = way.partition("-")
    if kind == "taylor":
        importance = tp.importance.GroupTaylorImportance()
        functional.cross_entropy(model(images), labels).backward()
    else:
        importance = tp.importance.GroupMagnitudeImportance()
    layers = layers_of(model)
    ignored = [module for module in model.modules() if getattr(module, "out_features", 0) == len(fashion.LABELS)]
    if inside:
        ignored += [model.patches, *(part for layer in layers for part in (layer.project, layer.mlp[2]))]
    more = {"num_heads": {part: layer.heads for layer in layers for part in layer.qkv.parts}}
    if layers:
        more["unwrapped_parameters"] = [(model.position, 2)]
    pruner = tp.pruner.MetaPruner(
        model, images[:1], importance=importance, pruning_ratio=RATIO, global_pruning=kind == "taylor",
        ignored_layers=ignored, round_to=ROUND_TO, **more,
    )  # fmt: skip
    pruner.step()
    for layer in layers:
        layer.heads = pruner.num_heads[layer.qkv.parts[0]]
        layer.qkv = Whole(layer.qkv)
    return model.eval()


proto = onnx.load(source)
arrays = np.load(train)
images, labels = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["labels"])
model = loaded(proto)
session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
with torch.no_grad():
    found = model(images[:8]).numpy()
wanted = np.concatenate([session.run(None, {"image": image[None]})[0] for image in arrays["image"][:8]])
error = float(np.abs(found - wanted).max() / np.abs(wanted).max())
if error > PARITY:
    sys.exit(f"the torch module is not the ONNX model: relative error {error:.1e}")
smaller = pruned(model, images, labels)
for parameter in smaller.parameters():
    parameter.grad = None
onnx.save(fashion.export(smaller, net), out)
