"""A dense integer network as Verilog by da4ml: IN.npz, a folder and a latency cut-off in; a line of JSON out.

IN.npz has `bits` of the input codes, `codes` to compute, and for each layer `weight0`, `bias0` and `shift0` (of the truncation
behind its ReLU; the last layer has none).
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from da4ml.codegen import RTLModel
from da4ml.trace import FixedVariableArrayInput, HWConfig, comb_trace
from da4ml.trace.ops import quantize, relu

given = np.load(sys.argv[1])
began = time.process_time()
bits = int(given["bits"])
layers = sum(name.startswith("weight") for name in given.files)
x = FixedVariableArrayInput((given["weight0"].shape[1],), HWConfig(1, -1, -1))
found = quantize(x, 1, bits - 1, 0, "WRAP", "TRN")
for layer in range(layers):
    found = found @ given[f"weight{layer}"].T.astype(np.float64) + given[f"bias{layer}"].astype(np.float64)
    if layer < layers - 1:
        shift = int(given[f"shift{layer}"])
        found = quantize(relu(found), 0, bits + shift, -shift, "SAT", "TRN") * 2.0**-shift
logic = comb_trace(x, found)
solved_s = time.process_time() - began
RTLModel(logic, "peer", sys.argv[2], latency_cutoff=float(sys.argv[3]), print_latency=False).write()
codes = logic.predict(given["codes"].astype(np.float64)).astype(np.int64)
adders = sum(op.opcode in (0, 1) for op in logic.ops)
print(json.dumps({"adders": adders, "seconds": solved_s, "codes": codes.tolist()}))
