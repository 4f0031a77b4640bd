"""Runs the CUDA backend's functions on the module simt_cuda, in a process with AddressSanitizer.

Reads pickled requests from stdin and writes pickled answers to stdout until stdin ends; see
device.py, which starts it.
"""

import importlib
import os
import pickle
import sys

import simt_cuda
import torch

from pvt_kernels import _C, use_backend
from pvt_kernels.backends.cuda import CudaBackend, attention, spatial_reduction

_C.cuda = simt_cuda
for module in (attention, spatial_reduction):
    module.device_and_stream = lambda tensor: (0, 0)
# its tensors lie on the CPU here
CudaBackend.not_supported_reasons = lambda self, inputs: []
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
