"""What Triton would compile at run time, by its own cache key, and whether tests/aot.py does too.

python -m tests.variants calls every op with tensors of many sizes and layouts, none of which has
memory, and prints each variant of a kernel that `make aot` does not compile. Left out of a variant
are the spatial reduction's C and R, which are a model's: `make aot` takes PVT's.
"""

from __future__ import annotations

import random
import sys
from itertools import product

from . import aot  # first, since it turns the interpreter off

# isort: split
import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from pvt_kernels.backends.slabs import Window
from pvt_kernels.backends.tensors import allows_tf32
from pvt_kernels.backends.triton import (
    attention,
    feed_forward,
    multi_head_attention,
    spatial_reduction,
)
from pvt_kernels.backends.triton import launch as triton_launch
from pvt_kernels.backends.triton.attention.tiles import tile_of
from pvt_kernels.backends.triton.launch import Gpu, Launch

ARCHS = (80, 90, 120)
CALLS = 40
WIDTHS = ("C", "R")


def compiled_variant(launch: Launch) -> tuple:
    """Of the binary that tests/aot.py makes of the launch."""
    signature, alignment = aot.specialization(launch)
    arguments = [
        (kind, (i,) in alignment)
        for i, kind in enumerate(signature.values())
        if kind != "constexpr"
    ]
    return _variant(launch, arguments)


def launched_variant(launch: Launch, arch: int) -> tuple:
    """Of the binary that Triton looks for, or else compiles, when the launch is called."""
    kernel, backend = launch.kernel, make_backend(GPUTarget("cuda", arch, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = launch.inputs | launch.outputs | launch.numbers | launch.constants
    _, keys, _ = bind(**arguments, debug=False)
    return _variant(launch, [(kind, key == "D") for kind, key in keys if kind != "constexpr"])


def _variant(launch: Launch, arguments: list[tuple[str, bool]]) -> tuple:
    constants = {k: v for k, v in launch.constants.items() if k not in WIDTHS}
    name = launch.kernel.fn.__name__
    return name, *arguments, *constants.items(), launch.warps, launch.stages


def launches_of_calls(arch: int, dtype: torch.dtype, calls: int) -> list[Launch]:
    """Of forward and backward of every op, on tensors laid out at random."""
    launches: list[Launch] = []
    triton_launch.is_interpreted = lambda: False
    triton_launch._gpu = lambda _: Gpu(arch, aot.H100.multiprocessors)
    triton_launch._launch = lambda launch, _: launches.append(launch)
    for _ in range(calls):
        _call_attention(dtype)
        _call_multi_head_attention(dtype)
        _call_spatial_reduction(dtype)
        launches += _feed_forward_launches(arch, dtype)
    return launches


def _call_attention(dtype: torch.dtype) -> None:
    d = random.randrange(1, 257 if dtype != torch.float32 or allows_tf32() else 129)
    B, heads = random.randrange(1, 3), random.randrange(1, 4)
    N, M = random.randrange(1, 100_000), random.randrange(1, 2000)
    do, q = (_tensor(B, N, heads, d, dtype=dtype) for _ in range(2))
    k, v = (_tensor(B, M, heads, d, dtype=dtype) for _ in range(2))
    o, lse = attention.forward(q, k, v, 0.1)
    attention.backward(do, q, k, v, o, lse, 0.1)


def _call_multi_head_attention(dtype: torch.dtype) -> None:
    C, heads = random.choice(((32, 1), (64, 1), (64, 2), (128, 2), (128, 4), (96, 3), (40, 2)))
    B, N, M = random.randrange(1, 3), random.randrange(1, 100_000), random.randrange(1, 2000)
    x, y = _tensor(B, N, C, dtype=dtype), _tensor(B, M, C, dtype=dtype)
    square, double = _tensor(C, C, dtype=dtype), _tensor(2 * C, C, dtype=dtype)
    q_bias, out_bias = (random.choice((None, _tensor(C, dtype=dtype))) for _ in range(2))
    layers = (square, q_bias, double, None, square, out_bias)
    save = random.random() < 0.5
    out, o, kv, lse = multi_head_attention.forward(x, y, *layers, heads, 0.1, save)
    if save:
        saved = (square, q_bias, double, square)
        multi_head_attention.backward(out, x, y, *saved, o, kv, lse, 0.1)


def _call_spatial_reduction(dtype: torch.dtype) -> None:
    B, C, R = random.randrange(1, 3), random.randrange(1, 2049), random.randrange(1, 9)
    H, W = (random.randrange(R, 400) for _ in range(2))
    x, weight = _tensor(B, H * W, C, dtype=dtype), _tensor(C, C, R, R, dtype=dtype)
    bias, gamma, beta = (_tensor(C, dtype=dtype) for _ in range(3))
    y, *saved = spatial_reduction.forward(x, H, W, weight, bias, gamma, beta, 1e-5)
    spatial_reduction.backward(y, x, H, W, weight, gamma, *saved)


def _feed_forward_launches(arch: int, dtype: torch.dtype) -> list[Launch]:
    """Of a plan's launches, since its calls have nothing but addresses."""
    convolved = random.random() < 0.7
    form = feed_forward.Form(
        Gpu(arch, aot.H100.multiprocessors),
        *(None, dtype, random.randrange(1, 3000), convolved, convolved and random.random() < 0.5),
        *(random.choice(("gelu", "relu")), convolved and random.random() < 0.5),
    )
    rows, width = (random.randrange(3, 400) for _ in range(2))
    if not convolved:
        return [feed_forward.dc_of(form, Window(1, rows * width, 1), 0, 0)[0]]
    window = Window(1, rows, width, random.randrange(2), random.randrange(2))
    return [
        feed_forward.forward_of(form, window)[0],
        feed_forward.dc_of(form, window, random.randrange(2), random.randrange(2))[0],
        feed_forward.dh_of(form, window)[0],
    ]


def _tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    """Contiguous, part of wider rows from an odd address on, transposed, or expanded."""
    layout = random.choice(("contiguous", "part", "transposed", "expanded"))
    if layout == "part":
        *rows, width = shape
        first, after = random.randrange(9), random.randrange(9)
        whole = torch.empty(*rows, first + width + after, dtype=dtype, device="meta")
        return whole[..., first : first + width]
    if layout == "transposed":
        return torch.empty(shape[::-1], dtype=dtype, device="meta").permute(
            *reversed(range(len(shape)))
        )
    if layout == "expanded":
        return torch.empty((), dtype=dtype, device="meta").expand(shape)
    return torch.empty(shape, dtype=dtype, device="meta")


def main() -> int:
    random.seed(0)
    compiled = {}
    for arch, name in product(ARCHS, aot.DTYPES):
        if name == "bf16" and arch not in aot.BF16_ARCHS:
            continue
        # what has no products is the same in TF32 and in fp32
        names = ("tf32", "fp32") if name == "tf32" else (name,)
        compiled[arch, name] = {
            compiled_variant(aot.launch_of(case)) for case in aot.cases([arch], names)
        }
    attention.tile_of = tile_of
    count, missing = 0, set()
    for (arch, name), variants in compiled.items():
        dtype, tf32 = aot.DTYPES[name]
        torch.backends.cuda.matmul.allow_tf32 = tf32
        for launch in launches_of_calls(arch, dtype, CALLS):
            variant = launched_variant(launch, arch)
            count += 1
            if variant not in variants:
                missing.add((arch, name, variant))
    for variant in sorted(missing, key=str):
        print("not compiled:", *variant)
    print(f"{count} launches, {len(missing)} variants that are not compiled")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
