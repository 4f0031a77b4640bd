"""Runs the CUDA backend's functions on the module simt_cuda, in a process with AddressSanitizer.

Reads pickled requests from stdin and writes pickled answers to stdout until stdin ends; see
device.py, which starts it.
"""

import importlib
import os
import pickle
import sys
from dataclasses import replace

import simt_cuda
import torch

from pvt_kernels import _C, use_backend
from pvt_kernels.backends.cuda import attention, feed_forward, spatial_reduction, sr_attention
from pvt_kernels.backends.registry import BACKENDS

# the stand-in, in place of the launchers for a GPU
_C.cuda = simt_cuda
for module in (attention, feed_forward, spatial_reduction, sr_attention):
    module.cuda = simt_cuda
    module.device_and_stream = lambda tensor: (0, 0)
# its tensors lie on the CPU here
able = {op: lambda inputs: [] for op in BACKENDS["cuda"].reasons}
BACKENDS["cuda"] = replace(BACKENDS["cuda"], reasons=able)
# memory that nobody wrote is NaN
torch.use_deterministic_algorithms(True)


def run(settings, environment, function, arguments):
    simt_cuda.configure(**settings)
    os.environ.update(environment)
    module, name = function.rsplit(".", 1)
    try:
        with use_backend("cuda"):
            result = getattr(importlib.import_module(module), name)(*arguments)
    except (ValueError, RuntimeError) as error:
        return error, {}
    return result, simt_cuda.counters()


# whatever else prints goes to stderr
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
while True:
    try:
        request = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    pickle.dump(run(*request), answers)
    answers.flush()
