"""NNCF's post-training quantisation with its defaults: python nncf_defaults.py MODEL TRAIN OUT."""

import sys

import nncf
import numpy as np
import onnx

model, train, out = sys.argv[1:]
arrays = dict(np.load(train))
rows = [{name: rows[index : index + 1] for name, rows in arrays.items()} for index in range(len(next(iter(arrays.values()))))]
onnx.save(nncf.quantize(onnx.load(model), nncf.Dataset(rows), subset_size=len(rows)), out)
