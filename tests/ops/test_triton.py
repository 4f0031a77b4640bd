"""What only the Triton kernels have: query splits, workspaces, masks, tiles, compiled variants."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from pvt_kernels import attention, multi_head_attention, spatial_reduction, use_backend
from pvt_kernels.backends import AttentionInputs, SpatialReductionInputs
from pvt_kernels.backends import triton as backend
from pvt_kernels.backends.registry import BACKENDS
from pvt_kernels.benchmarking.shapes import STAGES, stage_shape
from pvt_kernels.ops.multi_head_attention import reference as mha_reference

from ..error_budget import check_error_budget, with_gradients
from . import test_attention, test_spatial_reduction
from .cases import LOW_DTYPES

WITHOUT_TRITON = "triton is not installed"
triton_launch = pytest.importorskip("pvt_kernels.ops.triton_launch", reason=WITHOUT_TRITON)
triton_attention = import_module("pvt_kernels.ops.attention.triton")
attention_tiles = import_module("pvt_kernels.ops.attention.triton.tiles")
triton_mha = import_module("pvt_kernels.ops.multi_head_attention.triton")
triton_reduction = import_module("pvt_kernels.ops.spatial_reduction.triton")
reduction_tiles = import_module("pvt_kernels.ops.spatial_reduction.triton.tiles")

REASONS = BACKENDS["triton"].not_supported_reasons(
    AttentionInputs(torch.device("cpu"), torch.float32, 64, False)
)
pytestmark = pytest.mark.skipif(bool(REASONS), reason=f"triton: {'; '.join(REASONS)}")


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Every output and workspace starts as NaN, so that what is not written shows."""
    real = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        return real(self, *args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda t: t.new_empty(t.shape))


@pytest.fixture
def splits(request, monkeypatch):
    for module in (triton_attention, triton_reduction):
        monkeypatch.setattr(module, "splits_of", lambda *_, **__: request.param)
    return request.param


def test_the_workspaces_are_poisoned():
    assert torch.zeros(1).new_empty(2, 3, dtype=torch.float16).isnan().all()
    assert torch.empty_like(torch.zeros(2)).isnan().all()


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 2, 7], indirect=True)
def test_attention_with_split_queries(splits, dtype):
    # 7 splits of 5 tiles: two have none
    test_attention.check_against_oracle("triton", 2, 300, 70, 1, 64, dtype=dtype)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 2, 7], indirect=True)
def test_spatial_reduction_with_split_sums(splits, dtype):
    test_spatial_reduction.check_against_oracle("triton", 2, 9, 13, 40, 3, dtype)


@pytest.mark.parametrize("head_dim", [1, 8, 32, 40, 64, 96, 128, 256])
def test_attention_of_every_width(head_dim):
    test_attention.check_against_oracle("triton", 1, 65, 71, 2, head_dim, dtype=torch.float16)


# PVT's four stages and PVTv2-B0's first, on a map of a quarter of the sides
@pytest.mark.parametrize(
    ("heads", "head_dim", "sr_ratio", "stride"),
    [(1, 64, 8, 4), (2, 64, 4, 8), (5, 64, 2, 16), (8, 64, 1, 32), (1, 32, 8, 4)],
)
def test_the_shapes_of_pvt(heads, head_dim, sr_ratio, stride):
    H, W = 192 // stride, 288 // stride
    M = (H // sr_ratio) * (W // sr_ratio)
    q, k, v = test_attention.random_inputs(1, H * W, M, heads, head_dim)
    do = torch.randn(1, H * W, heads, head_dim)
    results = []
    for name in ("triton", "reference"):
        with use_backend(name):
            results.append(with_gradients(attention, (q, k, v), do))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
def test_memory_around_the_inputs_is_not_used(dtype):
    """Inputs that lie between rows of NaN give the same bits."""

    def between_nan(t):
        B, N, heads, d = t.shape
        around = torch.full((B + 2, N + 64, heads, d), float("nan"), dtype=dtype)
        around[1:-1, :N] = t
        return around[1:-1, :N]

    q, k, v = test_attention.random_inputs(2, 70, 37, 2, 40, dtype=dtype)
    do = torch.randn(2, 70, 2, 40).to(dtype)
    with use_backend("triton"):
        expected = with_gradients(attention, (q, k, v), do)
        o, lse = torch.ops.pvt_kernels.attention_forward(q, k, v, 0.3, "triton")
        inside = [between_nan(t) for t in (do, q, k, v)]
        actual = with_gradients(attention, inside[1:], inside[0])
        guarded = torch.ops.pvt_kernels.attention_backward(*inside, o, lse, 0.3, "triton")
        plain = torch.ops.pvt_kernels.attention_backward(do, q, k, v, o, lse, 0.3, "triton")
    for a, e in zip((*actual, *guarded), (*expected, *plain), strict=True):
        assert torch.equal(a, e)


# C, heads: PVT's first two stages, a width and a head below their blocks
NARROW = ((64, 1), (128, 2), (96, 3), (80, 2))


def mha_inputs(C, heads, dtype, bias=True, B=2, N=70, M=37):
    """All but `heads` and `scale`, the weights with unit gain."""
    tensors = [torch.randn(B, N, C), torch.randn(B, M, C)]
    for rows in (C, 2 * C, C):
        tensors += [torch.randn(rows, C) * C**-0.5, torch.randn(rows) if bias else None]
    return [None if t is None else t.to(dtype) for t in tensors]


@pytest.fixture(params=["fused", "unfused"])
def form(request, monkeypatch):
    if request.param == "unfused":
        monkeypatch.setattr(triton_mha, "MAX_FUSED_CHANNELS", 0)
    return request.param


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize(("C", "heads"), NARROW)
def test_multi_head_attention_in_both_forms(form, C, heads, dtype):
    def op(*tensors):
        with use_backend("triton"):
            return multi_head_attention(*tensors, heads)

    def definition(*tensors):
        return mha_reference.multi_head_attention(*tensors, heads, (C // heads) ** -0.5)

    names = ("out", "dx", "dy", "dWq", "dbq", "dWkv", "dbkv", "dWo", "dbo")
    samples = [(mha_inputs(C, heads, dtype), torch.randn(2, 70, C))]
    check_error_budget(op, definition, samples, names)


@pytest.mark.parametrize("save", [False, True])
def test_the_fused_forward_saves_what_the_unfused_does(monkeypatch, save):
    inputs = mha_inputs(64, 2, torch.float32, bias=False)
    forward = torch.ops.pvt_kernels.multi_head_attention_forward
    fused = forward(*inputs, 2, 0.2, save, "triton")
    monkeypatch.setattr(triton_mha, "MAX_FUSED_CHANNELS", 0)
    unfused = forward(*inputs, 2, 0.2, save, "triton")
    assert fused[1].shape == ((2, 70, 64) if save else (0,))
    torch.testing.assert_close(fused, unfused, rtol=1e-4, atol=1e-5)


def test_the_fused_forward_reads_strided_tokens_and_nothing_around_them():
    x, *others = mha_inputs(96, 3, torch.float16)
    around = torch.full((4, 70 + 64, 2 * 96), float("nan"), dtype=torch.float16)
    around[1:-1, :70, :96] = x
    with use_backend("triton"):
        expected = multi_head_attention(x, *others, 3)
        assert torch.equal(multi_head_attention(around[1:-1, :70, :96], *others, 3), expected)


def test_the_forms_are_chosen_by_width_and_dtype():
    gpu = triton_launch.Gpu(90, 132)
    layers = [(32, 32), (64, 64), (128, 64), (128, 128), (160, 32), (320, 64)]
    fused = [
        (C, dtype)
        for C, d in layers
        for dtype in LOW_DTYPES
        if triton_mha.fused_tile(gpu, dtype, C, d) is not None
    ]
    assert fused == [(C, dtype) for C in (32, 64, 128) for dtype in LOW_DTYPES[:2]]


def test_offsets_of_more_than_31_bits():
    """Rows that lie 2^31 + 1 elements apart, in memory of which nearly nothing is touched.

    An odd number, which is passed as it is: the interpreter goes by the number's size where the
    compiler goes by the argument's type, a 64-bit integer.
    """
    pitch = 2**31 + 1
    far = torch.empty(pitch + 2**12, dtype=torch.float16)

    def apart(t, offset):
        strided = far[offset:].as_strided(t.shape, (0, pitch, t.shape[-1], 1))
        return strided.copy_(t)

    q, k, v, do = torch.randn(4, 1, 2, 3, 32).half().unbind()
    with use_backend("triton"):
        expected = with_gradients(attention, (q, k, v), do)
        inputs = [apart(t, 128 * i) for i, t in enumerate((q, k, v))]
        actual = with_gradients(attention, inputs, do)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_memory_around_a_map_is_not_used():
    x, *parameters = test_spatial_reduction.random_inputs(2, 7, 11, 24, 3)
    around = torch.full((4, 77 + 50, 24), float("nan"))
    around[1:-1, :77] = x
    op = test_spatial_reduction.at_size(spatial_reduction, 7, 11)
    dy = torch.randn(2, 6, 24)
    with use_backend("triton"):
        expected = with_gradients(op, (x, *parameters), dy)
        actual = with_gradients(op, (around[1:-1, :77], *parameters), dy)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


WALL = 2**15


@pytest.fixture
def between_walls(monkeypatch):
    """A function that from then on puts all that kernels are given between walls of NaN."""
    real = triton_launch._launch

    def launch(launch, replaced):
        tensors = launch.inputs | launch.outputs | replaced
        walled = {}
        for name, t in tensors.items():
            extent = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            memory = torch.full((WALL + extent + WALL,), float("nan"), dtype=t.dtype)
            inside = memory.as_strided(t.shape, t.stride(), WALL).copy_(t)
            walled[name] = memory, inside
        real(launch, {name: inside for name, (_, inside) in walled.items()})
        for name, (memory, inside) in walled.items():
            tensors[name].copy_(inside)
            inside.fill_(float("nan"))
            assert memory.isnan().all(), f"{launch.kernel.__name__} wrote beside {name}"

    return lambda: monkeypatch.setattr(triton_launch, "_launch", launch)


@pytest.mark.parametrize("splits", [7], indirect=True)
def test_no_kernel_uses_what_lies_around_its_tensors(splits, form, between_walls):
    """Every tensor of every launch: what is read, written, kept and folded."""
    x, *reduction = test_spatial_reduction.random_inputs(2, 7, 11, 40, 3, torch.float16)
    attended = mha_inputs(40, 2, torch.float16)
    dy, dresult = torch.randn(2, 6, 40), torch.randn(2, 70, 40)

    def results():
        with use_backend("triton"):
            op = test_spatial_reduction.at_size(spatial_reduction, 7, 11)
            return [
                *with_gradients(op, (x, *reduction), dy),
                *with_gradients(lambda *t: multi_head_attention(*t, 2), attended, dresult),
            ]

    expected = results()
    between_walls()
    assert all(torch.equal(a, e) for a, e in zip(results(), expected, strict=True))


def test_nan_in_a_query_stays_in_its_row():
    q, k, v = test_attention.random_inputs(1, 60, 70, 1, 16)
    with use_backend("triton"):
        expected = attention(q, k, v)
        q[0, 50, 0, 3] = float("nan")
        actual = attention(q, k, v)
    assert actual[0, 50].isnan().all()
    actual[0, 50] = expected[0, 50]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_scores_far_from_zero_have_gradients(offset):
    """Keys beyond M score 0 within the kernel, which is e^300 times the sum of the true ones."""
    q, k, v = test_attention.random_inputs(1, 9, 35, 1, 32)
    q[..., 0], k[..., 0] = 1.0, offset
    do = torch.randn(1, 9, 1, 32)
    results = []
    for name in ("triton", "reference"):
        with use_backend(name):
            results.append(with_gradients(lambda *t: attention(*t, scale=1.0), (q, k, v), do))
    # dq's first channel is the offset times a sum that is zero but for rounding
    (o, dq, *rest), (o_, dq_, *rest_) = results
    assert dq.isfinite().all()
    actual, expected = (o, dq[..., 1:], *rest), (o_, dq_[..., 1:], *rest_)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_the_results_are_the_same_every_time():
    inputs = test_attention.random_inputs(2, 300, 70, 2, 32, dtype=torch.float16)
    do = torch.randn(2, 300, 2, 32)
    with use_backend("triton"):
        first, second = (with_gradients(attention, inputs, do) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kernel", attention_tiles.TILES)
def test_the_first_shipped_tile_of_every_unit(kernel, monkeypatch):
    """The interpreter's own tile is one for all; the shipped ones differ in their sides."""
    shipped = [tiles[64][0] for tiles in attention_tiles.TILES[kernel].values()]
    real = attention_tiles.tile_of
    for tile in dict.fromkeys(shipped):
        monkeypatch.setattr(
            triton_attention,
            "tile_of",
            lambda name, *args, tile=tile: tile if name == kernel else real(name, *args),
        )
        test_attention.check_against_oracle("triton", 1, 140, 133, 1, 64, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_the_shipped_tile_of_the_spatial_reduction(dtype, monkeypatch):
    gpu, real = triton_launch.Gpu(90, 2), reduction_tiles.product_tile
    monkeypatch.setattr(
        triton_reduction, "product_tile", lambda _, dtype, **rows: real(gpu, dtype, **rows)
    )
    test_spatial_reduction.check_against_oracle("triton", 1, 5, 17, 72, 2, dtype)


@pytest.mark.parametrize("blocks", [1, 16, 60, 1000])
@pytest.mark.parametrize("steps", [0, 1, 50, 1000])
def test_splits_fill_the_gpu(blocks, steps):
    gpu = triton_launch.Gpu(90, 132)
    splits = triton_launch.splits_of(gpu, 2, blocks, steps)
    assert 1 <= splits <= max(1, steps)
    full = blocks * splits >= triton_launch.WAVES * 132 * 2
    assert full or splits == max(1, steps)
    # no more workspace than twice what filling takes
    assert blocks * (splits - 1) <= 2 * triton_launch.WAVES * 132 * 2


def test_strides_are_passed_in_units_where_all_are_multiples():
    t = torch.empty(2, 6, 3, 8)
    arguments, unit = triton_launch.strides("bnh", q=t)
    assert unit == 8
    assert arguments == {"stride_qb": 18, "stride_qn": 3, "stride_qh": 1}
    arguments, unit = triton_launch.strides("bnh", q=torch.empty(1, 6, 3, 9)[..., :8])
    assert unit == 1
    assert arguments == {"stride_qb": 0, "stride_qn": 27, "stride_qh": 9}


@pytest.fixture
def launched(monkeypatch):
    """What would be launched on an H100, none of which runs."""
    launches = []
    monkeypatch.setattr(triton_launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(triton_launch, "_gpu", lambda _: triton_launch.Gpu(90, 132))
    monkeypatch.setattr(triton_launch, "_launch", lambda launch, _: launches.append(launch))
    return launches


@pytest.mark.parametrize("dtype", LOW_DTYPES, ids=str)
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_on_the_way_to_the_kernels_waits_for_the_gpu(launched, stage, dtype):
    """Tensors of device meta have no numbers: reading one, as a copy to the host would, raises.

    So a CUDA graph can capture the calls. The kernels themselves need no memory but what they are
    given, which `make aot` checks.
    """
    shape = stage_shape(stage, (800, 1216), batch=2)
    C, R = shape.dim, shape.sr_ratio
    with torch.device("meta"):
        attended = mha_inputs(C, shape.heads, dtype, N=shape.queries, M=shape.keys)
        x, y = attended[:2]
        layers, vector = attended[2:], torch.empty(C, dtype=dtype)
        weight = torch.empty(C, C, R, R, dtype=dtype)
    out, o, kv, lse = triton_mha.forward(x, y, *layers, shape.heads, 0.1, True)
    saved = [layers[i] for i in (0, 1, 2, 4)]
    gradients = triton_mha.backward(out, x, y, *saved, o, kv, lse, 0.1)
    if R > 1:
        size = shape.height, shape.width
        vectors = (vector, vector, vector)
        y, *kept = triton_reduction.forward(x, *size, weight, *vectors, 1e-5)
        gradients += triton_reduction.backward(y, x, *size, weight, vector, *kept)
    assert all(t.device.type == "meta" for t in gradients)
    expected = (2 + 7 if R > 1 else 0) + (1 + 4)
    assert len(launched) == expected
    for launch in launched:
        assert all(type(n) in (int, float) for n in launch.numbers.values())


def test_kernels_run_on_their_tensors_device_and_in_order(monkeypatch):
    events = []

    class Guard:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            events.append(("enter", self.device))

        def __exit__(self, *_):
            events.append(("exit", self.device))

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    monkeypatch.setattr(triton_launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(triton_launch, "_launch", lambda launch, _: events.append(launch.blocks))

    def launch(device, blocks):
        out = torch.empty(4, device=device)
        return triton_launch.Launch(None, blocks, {"x": torch.empty(4)}, {"out": out}, {}, {})

    meta, cpu = torch.device("meta"), torch.device("cpu")
    triton_launch.run(launch(meta, 3), launch(cpu, 0), launch(cpu, 5))
    assert events == [
        *(("enter", meta), 3, ("exit", meta)),
        # nothing is launched for no blocks
        *(("enter", cpu), 5, ("exit", cpu)),
    ]


def test_tf32_follows_pytorch():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert triton_launch.precision(torch.float32) == "tf32"
        assert triton_launch.precision(torch.float16) == "ieee"
        torch.backends.cuda.matmul.allow_tf32 = False
        assert triton_launch.precision(torch.float32) == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


FP32 = (torch.float32, 64, False)


@pytest.mark.parametrize(
    ("device", "facts", "interpreted", "capability", "reason"),
    [
        ("cpu", FP32, False, None, "the device is cpu, and TRITON_INTERPRET=1 is not set"),
        ("meta", FP32, False, None, "the device is meta"),
        ("cuda:0", FP32, True, None, "TRITON_INTERPRET=1 is for CPU tensors"),
        ("cuda:0", FP32, False, (7, 5), "compute capability is 7.5, below 8.0"),
        ("cuda:0", (torch.float64, 64, False), False, (9, 0), "the dtype is torch.float64"),
        ("cuda:0", (torch.float16, 264, False), False, (9, 0), "head_dim is 264, above 256"),
        ("cuda:0", (torch.float32, 256, False), False, (9, 0), "head_dim is 256 in float32"),
        ("cuda:0", (torch.float16, 64, True), False, (9, 0), "attention dropout is active"),
    ],
)
def test_reasons(monkeypatch, device, facts, interpreted, capability, reason):
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreted else "0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    inputs = AttentionInputs(torch.device(device), *facts)
    (given,) = BACKENDS["triton"].not_supported_reasons(inputs)
    assert reason in given


def test_reasons_on_rocm_without_triton_and_for_many_channels(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(backend, "_is_installed", lambda: False)
    inputs = SpatialReductionInputs(torch.device("cuda", 0), torch.float16, 4096, 2)
    assert BACKENDS["triton"].not_supported_reasons(inputs) == [
        "the package triton is not installed",
        "this PyTorch is not built for NVIDIA GPUs",
        "there are 4096 channels, above 2048",
    ]


def run_python(code):
    """In a process of its own, whose kernels are not the interpreter's."""
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_runs_without_triton():
    process = run_python(
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else real(name, *a)\n"
        "import torch, pvt_kernels\n"
        "q = torch.randn(1, 6, 2, 8)\n"
        "pvt_kernels.attention(q, q, q)\n"
        "(decision,) = pvt_kernels.explain(pvt_kernels.attention, q, q, q)\n"
        "print(decision.reasons['triton'])\n"
    )
    assert process.returncode == 0, process.stderr
    assert "the package triton is not installed" in process.stdout


VARIANTS = """
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from pvt_kernels.ops.attention.triton import backward_launches, forward_launches
from pvt_kernels.ops.multi_head_attention.triton import fused_launch, fused_tile
from pvt_kernels.ops.spatial_reduction import triton as reduction
from pvt_kernels.ops.triton_launch import Gpu

compiler = make_backend(GPUTarget("cuda", 90, 32))
gpu = Gpu(90, 132)
binders, variants = {}, {}
shapes = [(b, h, w) for b in (1, 2) for h in range(96, 400, 24) for w in range(96, 400, 40)]
for B, H, W in shapes:
    for C, heads, R in ((64, 1, 8), (40, 1, 4)):
        def empty(*shape, dtype=torch.float16):
            return torch.empty(shape, dtype=dtype, device="meta")
        N, M = H * W, (H // R) * (W // R)
        q, kv = empty(B, N, heads, C // heads), empty(B, M, 2, heads, C // heads)
        k, v = kv.unbind(2)
        lse = empty(B, heads, N, dtype=torch.float32)
        c, square = empty(C), empty(C, C)
        x, weight, y = empty(B, N, C), empty(C, C, R, R), empty(B, M, C)
        norm = y.float(), empty(B, M, dtype=torch.float32)
        layers = (square, c, square, c)
        tile = fused_tile(gpu, x.dtype, C, C // heads)
        launches = [
            *forward_launches(gpu, q, k, v, 0.1)[0],
            *backward_launches(gpu, q, q, k, v, q, lse, 0.1)[0],
            fused_launch(tile, x, kv.flatten(2), *layers, heads, 0.1, False)[0],
            *reduction.forward_launches(gpu, x, H, W, weight, c, c, c, 1e-5)[0],
            *reduction.backward_launches(gpu, y, x, H, W, weight, c, *norm)[0],
        ]
        for launch in launches:
            kernel = launch.kernel
            if kernel not in binders:
                binders[kernel] = create_function_from_signature(
                    kernel.signature, kernel.params, compiler
                )
            tensors = launch.inputs | launch.outputs
            arguments = tensors | launch.numbers | launch.constants
            _, key, _ = binders[kernel](**arguments, debug=False)
            key = str((key, launch.warps, launch.stages))
            variants.setdefault((kernel.fn.__name__, C), set()).add(key)
for name, keys in variants.items():
    print(*name, len(keys))
"""


def test_no_new_variant_is_compiled_when_the_map_changes():
    """By Triton's own cache key, over maps of 104 sizes and batches of one and of two."""
    process = run_python(VARIANTS)
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stdout.splitlines()]
    variants = {(name, int(C)): int(count) for name, C, count in lines}
    assert len(variants) == 20
    # the forward and dq have a large and a small tile, the fold one for vectors and one for maps
    allowed = dict.fromkeys(("attention_forward_kernel", "attention_dq_kernel", "fold_kernel"), 2)
    for (name, _), count in variants.items():
        assert count <= allowed.get(name, 1), (name, count)
