"""The main job on a real model: export EfficientNet-Lite0 for a Raspberry Pi and a Jetson, check it, run it, measure it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import edgesdk
import real_models

OUT = Path("build/demo")
MODEL = Path("build/models/efficientnet-lite0.onnx")
PI, JETSON = OUT / "efficientnet-lite0-pi4.edge", OUT / "efficientnet-lite0-orin-nano.edge"


def shell(*command: str) -> None:
    """Print a command, then run it; a failure ends the demo."""
    print(f"\n$ {' '.join(command)}", flush=True)
    program = [sys.executable, "-m", "edgesdk.cli", *command[1:]] if command[0] == "edgesdk" else [sys.executable, *command[1:]]
    subprocess.run(program, check=True)


def main() -> None:
    begin = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    shell("python", "examples/real_models.py", "efficientnet-lite0", "--out", str(MODEL.parent))
    shell("edgesdk", "inspect", str(MODEL))
    shell("edgesdk", "export", str(MODEL), "--device", "raspberry-pi-4", "--out", str(PI))
    shell("edgesdk", "export", str(MODEL), "--target", "jetson", "--precision", "fp16", "--out", str(JETSON))
    shell("edgesdk", "verify", str(PI))
    shell("edgesdk", "verify", str(JETSON))

    print("\n# on the device: five lines of Python, with the photo as it is")
    photo = np.asarray(Image.open(real_models.photo()).convert("RGB"))
    with edgesdk.load(PI) as session:
        outputs = session.run({"image": photo}, raw=True)
        for label, probability in session.top(outputs, 3):
            print(f"  {probability:6.1%}  {label}")

    shell("edgesdk", "measure", str(PI))
    print(f"\ndone in {time.monotonic() - begin:.0f} s; bundles and reports are in {OUT}")


if __name__ == "__main__":
    main()
