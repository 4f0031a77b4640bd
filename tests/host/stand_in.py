"""The host path of the GPU backends without a GPU: CPU tensors, and a driver that does nothing.

It needs a process of its own, with TRITON_INTERPRET=0 from the start: Triton compiles its kernels
here, it does not interpret them, and libcuda.so.1 is the stand-in. The launchers of the CUDA
kernels are compiled as host C++, on a runtime that does nothing either.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import triton

from pvt_kernels._C import driver
from pvt_kernels.backends.cuda import attention as cuda_attention
from pvt_kernels.backends.cuda import feed_forward as cuda_feed_forward
from pvt_kernels.backends.cuda import spatial_reduction as cuda_reduction
from pvt_kernels.backends.registry import BACKENDS
from pvt_kernels.backends.triton import launch as triton_launch
from pvt_kernels.backends.triton import multi_head_attention as triton_mha
from pvt_kernels.backends.triton import plan as triton_plan
from pvt_kernels.backends.triton.attention.tiles import Tile
from pvt_kernels.ops import repeated, sr_attention

from ..cmake_module import build
from .paths import ROOT

BUILD = ROOT / "build" / f"host-{sys.implementation.cache_tag}"
PACKAGE = str(ROOT / "pvt_kernels") + os.sep


def _library() -> ctypes.CDLL:
    """Compiled where it is older than its source; found by dlopen("libcuda.so.1") from then on."""
    source, library = Path(__file__).with_name("driver.cpp"), BUILD / "libcuda.so.1"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        BUILD.mkdir(parents=True, exist_ok=True)
        made = BUILD / f"{os.getpid()}.so"
        compiler = os.environ.get("CXX", "c++")
        flags = ("-std=c++17", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
        subprocess.run([compiler, *flags, source, "-o", made], check=True)
        # processes side by side each make one
        made.replace(library)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _host_cuda() -> ModuleType:
    build(ROOT / "tests" / "host", BUILD)
    sys.path.insert(0, str(BUILD))
    return importlib.import_module("host_cuda")


library = _library()
host_cuda = _host_cuda()
library.stand_in_launched.restype = ctypes.c_char_p
H100 = triton_launch.Gpu(90, 132)
# what of host_cuda makes plans
PLANNERS = [name for name in dir(host_cuda) if name.startswith("plan_")]
# of triton.compile, as often as it was called
compiled: list[str] = []


def install(fused_channels: int | None = None) -> None:
    """CPU tensors count as an H100's. The one place where the package is told so.

    With `fused_channels` layers up to this width are fused, in every dtype, instead of those that
    are: for the host code of narrower layers than PVT's.
    """
    if fused_channels is not None:
        triton_mha.fused_tile = lambda gpu, dtype, channels, *_: (
            Tile(64, 64, 4, 2, 2) if channels <= fused_channels else None
        )
    for name in ("triton", "cuda"):
        able = {op: lambda inputs: [] for op in BACKENDS[name].reasons}
        BACKENDS[name] = replace(BACKENDS[name], reasons=able)
    _use_cuda(host_cuda)
    triton_launch._gpu = lambda device: H100
    triton_plan.driver = SimpleNamespace(
        Plan=driver.Plan,
        Kernel=lambda _, *arguments, **named: driver.Kernel(0, *arguments, **named),
    )
    triton_plan.triton = SimpleNamespace(compile=_compile, __version__=triton.__version__)


CUDA_MODULES = cuda_attention, cuda_reduction, cuda_feed_forward


def _use_cuda(binding: object) -> None:
    """In place of the one whose launchers call CUDA's runtime."""
    for module in CUDA_MODULES:
        module.cuda = binding


def forget_plans() -> None:
    """All that was kept of calls."""
    sr_attention._calls.clear()
    repeated._kept.clear()
    for module in CUDA_MODULES:
        for kept in vars(module).values():
            if hasattr(kept, "cache_clear"):
                kept.cache_clear()


def _compile(source, target, options) -> SimpleNamespace:
    """The kernel, with the number in place of its machine code by which the stand-in knows it."""
    kernel = triton.compile(source, target, options)
    metadata, ptx = kernel.metadata, kernel.asm["ptx"]
    compiled.append(metadata.name)
    entry = re.search(rf"\.entry {metadata.name}\((.*?)\)", ptx, re.DOTALL)[1]
    parameters = [line for line in entry.split(",") if ".param" in line]
    bytes_ = [int(re.search(r"\.param \.[a-z](\d+)", line)[1]) // 8 for line in parameters]
    arguments = [type_ for type_ in source.signature.values() if type_ != "constexpr"]
    kinds = [int(type_.startswith("*")) for type_ in arguments]
    kinds += [2] * (len(bytes_) - len(kinds))
    array = ctypes.c_int * len(bytes_)
    number = library.stand_in_add_kernel(
        metadata.name.encode(),
        metadata.num_warps * 32,
        metadata.shared,
        len(bytes_),
        array(*bytes_),
        array(*kinds),
    )
    asm = {"ptx": ptx, "cubin": f"{number}\0".encode()}
    return SimpleNamespace(metadata=metadata, asm=asm)


def reset(failing_launch: int = -1) -> None:
    """Forget the launches; the one of this number is to fail."""
    library.stand_in_reset(ctypes.c_long(failing_launch))
    host_cuda.reset(failing_launch)


def launched() -> list[str]:
    """The kernels' names, since the last reset, Triton's before those in CUDA C++."""
    count = library.stand_in_launches()
    names = [library.stand_in_launched(i).decode() for i in range(count)]
    # as the linker has them, each name after its length
    return names + [
        re.search(r"cuda\d+(\w+_kernel)I", symbol)[1] for symbol in host_cuda.launched()
    ]


@contextmanager
def watched_memory(given: Sequence[torch.Tensor] | None = None) -> Iterator[None]:
    """Every pointer of a launch has to be of a tensor that is alive.

    With `given`, of one of these, or of one that is made within: of what a CUDA graph of the
    launches has whenever it is replayed, since nobody else knows what it reads.
    """
    # held, so that nothing that is made within is at the address of one of them
    others = [] if given is None else _storages()
    known = {s.data_ptr() for s in others} - {t.untyped_storage().data_ptr() for t in given or ()}

    def spans() -> list[tuple[int, int]]:
        storages = [s for s in _storages() if s.data_ptr() not in known]
        return [(s.data_ptr(), s.data_ptr() + s.nbytes()) for s in storages if s.nbytes()]

    class TritonPlan:
        def __init__(self, *arguments: object) -> None:
            self.plan = driver.Plan(*arguments)

        def launch(self, *arguments: object) -> None:
            live = spans()
            array = ctypes.c_size_t * len(live)
            library.stand_in_set_live(
                len(live), *(array(*ends) for ends in zip(*live, strict=True))
            )
            try:
                self.plan.launch(*arguments)
            finally:
                library.stand_in_set_live(0, None, None)

    class CudaPlan:
        def __init__(self, plan: object) -> None:
            self.plan, self.workspace = plan, plan.workspace

        def launch(self, stream: int, addresses: Sequence[int]) -> None:
            live = spans()
            for i, address in enumerate(addresses):
                if address and not any(begin <= address < end for begin, end in live):
                    raise RuntimeError(f"address {i} is of no live memory")
            self.plan.launch(stream, addresses)

    def making(function: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments, **named: CudaPlan(function(*arguments, **named))

    makers = {name: making(getattr(host_cuda, name)) for name in PLANNERS}
    # plans that are made within are watched, and no others
    forget_plans()
    triton_plan.driver.Plan = TritonPlan
    _use_cuda(SimpleNamespace(**makers))
    try:
        yield
    finally:
        triton_plan.driver.Plan = driver.Plan
        _use_cuda(host_cuda)
        forget_plans()


def _storages() -> list[torch.UntypedStorage]:
    """Of all tensors that are alive."""
    # and no others than these, such as those that PyTorch traces with
    kinds = torch.Tensor, torch.nn.Parameter
    tensors = [t for t in gc.get_objects() if type(t) in kinds]
    return [t.untyped_storage() for t in tensors if t.device.type == "cpu"]


def calls_of(function: Callable[[], object]) -> tuple[int, int]:
    """How often Python functions of the package are called, and PyTorch is asked for memory."""
    counts = {"calls": 0, "allocations": 0}
    allocators = {"new_empty", "new_zeros", "empty", "empty_like", "zeros"}

    def profile(frame, event: str, argument: object) -> None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return
        if event == "call":
            counts["calls"] += 1
        elif event == "c_call" and argument.__name__ in allocators:
            counts["allocations"] += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return counts["calls"], counts["allocations"]
