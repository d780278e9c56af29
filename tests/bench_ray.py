"""What a second worker brings: requests a second of a bundle behind Ray Serve on one node and on two, and of `edgesdk serve`.

python -m tests.bench_ray [CLIENTS]

The bundle is EfficientNet-Lite0 with a small answer and a small question (it enlarges its own input), so that the network and not
the copying of images is what is scaled. Clients, proxies and replicas share this machine's cores: with two of them both replicas
run on what the others leave, and a second one brings less than it would on a machine of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import edgesdk
from edgesdk.ray_config import write_config
from edgesdk.remote_tail import Remote, RemoteTail
from edgesdk_targets.bundle import Bundle

from .bench_quantised import MODELS, show
from .bench_serving import SECONDS, served, together
from .ray_cluster import free_port, running

CLIENTS = 4


def small(folder: Path) -> Bundle:
    """EfficientNet-Lite0 on an image of 28 x 28 pixels that the graph enlarges to 224 x 224: 9 kB to send for 0.4 GMACs."""
    model = onnx.load(MODELS / "efficientnet-lite0.onnx")
    graph = model.graph
    name = graph.input[0].name
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [4], [1.0, 1.0, 8.0, 8.0])
    graph.initializer.append(scales)
    graph.node.insert(0, helper.make_node("Resize", ["small", "", "scales"], [name], name="enlarge", mode="nearest"))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("small", TensorProto.FLOAT, [1, 3, 28, 28]))
    del model.metadata_props[:]  # what it says of the input is not true of this one
    onnx.save(model, folder / "small.onnx")
    return edgesdk.export(folder / "small.onnx", target="server", out=folder / "small.edge")


@contextmanager
def ray(bundle: Bundle, workers: int) -> Iterator[str]:
    """Ray Serve on so many nodes with one CPU and one replica each."""
    config, port = bundle.path.with_name(f"{workers}.yaml"), free_port()
    write_config(bundle.path, config, replicas=workers, port=port)
    with running(config, port=port, nodes=workers) as cluster:
        while len(cluster.replicas()) < workers:
            time.sleep(0.1)
        time.sleep(3)  # the second node's proxy
        yield cluster.url


@contextmanager
def plain(bundle: Bundle) -> Iterator[str]:
    with served(bundle.path) as (told, _):
        yield told["rest"]


def client(bundle: Bundle, url: str) -> partial[object]:
    far = RemoteTail(Remote(url, 60_000, "error"), bundle)
    far.connect()
    x = np.random.default_rng(0).standard_normal((1, 3, 28, 28), np.float32)
    return partial(far.run, {"small": x})


def main() -> None:
    """The table."""
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else CLIENTS
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = small(Path(folder))
        ways = (
            ("edgesdk serve, 2 workers", plain(bundle)),
            ("Ray, 1 worker", ray(bundle, 1)),
            ("Ray, 2 workers", ray(bundle, 2)),
        )
        for name, way in ways:
            with way as url:
                one = together(partial(client, bundle, url), 1)
                found = together(partial(client, bundle, url), clients)
            rows.append(
                (name, f"{np.median(one):.1f}", f"{len(found) / SECONDS:,.1f}", f"{np.median(found):.1f}",
                 f"{np.percentile(found, 99):.1f}")
            )  # fmt: skip
    show(("server", "1 client p50 ms", f"{clients} clients /s", "p50 ms", "p99 ms"), rows)
    print(f"{os.cpu_count()} cores for clients, proxies and replicas together; load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
