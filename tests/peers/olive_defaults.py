"""Olive's OnnxStaticQuantization with its defaults: python olive_defaults.py MODEL TRAIN OUT."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import olive
from olive.data.registry import Registry

model, train, out = sys.argv[1:]


@Registry.register_dataset()
class Rows:
    """Rows of an .npz with a label that nothing reads."""

    def __init__(self, **_):
        self.arrays = dict(np.load(train))

    def __len__(self):
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index):
        return {name: rows[index] for name, rows in self.arrays.items()}, 0


with tempfile.TemporaryDirectory() as folder:
    config = {
        "input_model": {"type": "ONNXModel", "model_path": model},
        "data_configs": [{
            "name": "rows", "type": "DataContainer", "load_dataset_config": {"type": "Rows"},
            "dataloader_config": {"batch_size": 1},
        }],
        "passes": {"quantise": {"type": "OnnxStaticQuantization", "data_config": "rows"}},
        "output_dir": folder, "evaluate_input_model": False, "log_severity_level": 3,
    }  # fmt: skip
    olive.run(json.loads(json.dumps(config)))
    shutil.copyfile(next(Path(folder).rglob("*.onnx")), out)
