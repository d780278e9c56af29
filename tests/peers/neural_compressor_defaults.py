"""Intel Neural Compressor 2.6 with its defaults: python neural_compressor_defaults.py MODEL TRAIN OUT."""

import sys

import numpy as np
from neural_compressor import PostTrainingQuantConfig, quantization

model, train, out = sys.argv[1:]


class Loader:
    """Rows of an .npz with a label that nothing reads, as its data loaders give them."""

    batch_size = 1

    def __init__(self, path):
        arrays = dict(np.load(path))
        (self.rows,) = arrays.values()

    def __iter__(self):
        for index in range(len(self.rows)):
            yield self.rows[index : index + 1], 0


made = quantization.fit(model, PostTrainingQuantConfig(approach="static"), calib_dataloader=Loader(train))
made.save(out)
