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
from pvt_kernels.backends.cuda import attention, feed_forward, spatial_reduction
from pvt_kernels.backends.registry import BACKENDS
from pvt_kernels.ops import repeated, sr_attention

# the stand-in, in place of the launchers for a GPU
_C.cuda = simt_cuda
MODULES = attention, feed_forward, spatial_reduction
for module in MODULES:
    module.cuda = simt_cuda
# its tensors lie on the CPU here
able = {op: lambda inputs: [] for op in BACKENDS["cuda"].reasons}
BACKENDS["cuda"] = replace(BACKENDS["cuda"], reasons=able)
# memory that nobody wrote is NaN
torch.use_deterministic_algorithms(True)

KEPT = [f for module in MODULES for f in vars(module).values() if hasattr(f, "cache_clear")]
# what plans were made for, of which other processes have one device
DEVICE = ("arch", "multiprocessors", "shared_memory_per_block")
device = None


def run(settings, environment, function, arguments):
    global device
    simt_cuda.configure(**settings)
    os.environ.update(environment)
    of_this_call = [settings[fact] for fact in DEVICE], environment
    if of_this_call != device:
        for kept in KEPT:
            kept.cache_clear()
        sr_attention._calls.clear()
        repeated._kept.clear()
        device = of_this_call
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
