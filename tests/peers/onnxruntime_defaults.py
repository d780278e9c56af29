"""onnxruntime.quantization with its defaults: python onnxruntime_defaults.py MODEL TRAIN OUT."""

import sys

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static


class Reader(CalibrationDataReader):
    """Rows of an .npz, one at a time."""

    def __init__(self, path):
        arrays = dict(np.load(path))
        count = len(next(iter(arrays.values())))
        self.rows = iter([{name: rows[index : index + 1] for name, rows in arrays.items()} for index in range(count)])

    def get_next(self):
        return next(self.rows, None)


model, train, out = sys.argv[1:]
quantize_static(model, out, Reader(train))
