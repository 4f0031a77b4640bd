"""Runs the CUDA backend's functions on the module simt_cuda, in a process with AddressSanitizer.

Reads pickled requests from stdin and writes pickled answers to stdout until stdin ends; see
device.py, which starts it.
"""

import importlib
import os
import pickle
import sys

# whatever else prints goes to stderr
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)

import torch

sys.path.insert(0, sys.argv[1])
import simt_cuda

from pvt_kernels import _C

_C.cuda = simt_cuda
# memory that nobody wrote is NaN
torch.use_deterministic_algorithms(True)


def run(settings, op, function, arguments):
    simt_cuda.configure(**settings)
    module = importlib.import_module(f"pvt_kernels.ops.{op}.cuda")
    module.device_and_stream = lambda tensor: (0, 0)
    try:
        return getattr(module, function)(*arguments), simt_cuda.counters()
    except (ValueError, RuntimeError) as error:
        return error, None


while True:
    try:
        request = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    pickle.dump(run(*request), answers)
    answers.flush()
