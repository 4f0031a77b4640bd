"""How the Triton kernels are launched: memory, strides, splits, folds, devices, precision."""

import pytest
import torch

from pvt_kernels import multi_head_attention, spatial_reduction, use_backend
from pvt_kernels.benchmarking.shapes import STAGES, stage_shape
from pvt_kernels.benchmarking.triton_launches import launches_of_a_layer

from ...error_budget import with_gradients
from ...ops.cases import LOW_DTYPES
from ...ops.cases import multi_head_attention as mha_cases
from ...ops.cases import spatial_reduction as reduction_cases
from .kernels import needs_interpreter, triton_launch, triton_mha, triton_reduction

pytestmark = needs_interpreter


def test_the_workspaces_are_poisoned():
    assert torch.zeros(1).new_empty(2, 3, dtype=torch.float16).isnan().all()
    assert torch.empty_like(torch.zeros(2)).isnan().all()


@pytest.mark.parametrize("splits", [7], indirect=True)
def test_no_kernel_uses_what_lies_around_its_tensors(splits, form, between_walls):
    """Every tensor of every launch: what is read, written, kept and folded."""
    x, *reduction = reduction_cases.random_inputs(2, 7, 11, 40, 3, torch.float16)
    attended = mha_cases.random_inputs(2, 70, 37, 2, 20, torch.float16)
    dy, dresult = torch.randn(2, 6, 40), torch.randn(2, 70, 40)

    def results():
        with use_backend("triton"):
            op = reduction_cases.at_size(spatial_reduction, 7, 11)
            return [
                *with_gradients(op, (x, *reduction), dy),
                *with_gradients(lambda *t: multi_head_attention(*t, 2), attended, dresult),
            ]

    expected = results()
    between_walls()
    assert all(torch.equal(a, e) for a, e in zip(results(), expected, strict=True))


H100 = triton_launch.Gpu(90, 132)
# csrc/splits.h
OVERHEAD, WAVES = 10, 2


@pytest.mark.parametrize("blocks", [1, 16, 60, 1000])
@pytest.mark.parametrize("steps", [0, 1, 50, 1000])
def test_long_sums_are_split_until_the_gpu_is_busy(blocks, steps):
    splits = triton_launch.splits_of(
        H100, torch.float16, 2, blocks, steps, multiply_adds=64**3, numbers=64 * 64 * blocks
    )
    assert 1 <= splits <= max(1, steps)
    # of short sums the beginning and the end would weigh more than what is split
    long = steps > OVERHEAD
    assert blocks * splits >= 132 / 2 or not long or steps // splits <= OVERHEAD
    # no more workspace than filling takes
    assert blocks * (splits - 1) <= WAVES * 132 * 2


# of dk and dv, the convolution, and the weight's gradient
@pytest.mark.parametrize(
    ("stage", "expected"),
    [(1, (16, 8, 3)), (2, (8, 4, 3)), (3, (3, 2, 3)), (4, (2,))],
)
def test_splits_on_an_h100_in_training(stage, expected):
    """One wave of blocks, nearly full, where partial results are much of what is moved."""
    layer = launches_of_a_layer(stage_shape(stage, (800, 1216), batch=2), torch.float16, H100)
    names = ("attention_dkdv", "convolution", "dweight")[: len(expected)]
    assert tuple(layer[name].numbers["splits"] for name in names) == expected
    for name in names:
        assert 132 < layer[name].blocks <= layer[name].resident * 132


def test_strides_are_passed_in_units():
    t = torch.empty(1, 6, 3, 16)[..., :8]
    assert triton_launch.wide_rows(t) is t
    expected = {"stride_qb": 0, "stride_qn": 6, "stride_qh": 2}
    assert triton_launch.strides("bnh", q=t) == expected


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 6, 3, 20),
        torch.randn(2, 6, 3, 9)[..., :8],
        torch.randn(2, 6, 3, 24)[..., 1:17],
        torch.randn(2, 16, 6, 3).permute(0, 2, 3, 1),
        torch.randn(2, 6, 3, 1).expand(2, 6, 3, 16),
    ],
    ids=["narrow rows", "odd pitch", "odd address", "channels apart", "expanded"],
)
def test_rows_are_copied_to_where_they_are_wide(tensor):
    wide = triton_launch.wide_rows(tensor)
    assert torch.equal(wide, tensor)
    assert wide.data_ptr() % 16 == 0
    *rows, channels = wide.stride()
    assert channels == 1
    assert all(stride % triton_launch.UNIT.value == 0 for stride in rows)


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_fold_adds_a_map_and_a_stack_in_order(layout):
    partials = torch.randn(33, 5, 9, 24)
    stack = torch.randn(60, 3, 2, 40)
    out = torch.empty(5, 9, 24) if layout == "rows" else torch.empty(5, 24, 9).transpose(1, 2)
    outs = list(torch.empty(3, 2, 40).half().unbind())
    triton_launch.run(triton_launch.fold(triton_launch.INTERPRETER, stack, outs, partials, [out]))
    torch.testing.assert_close(out, partials.sum(0))
    torch.testing.assert_close(torch.stack(outs), stack.sum(0).half())


def test_the_fold_adds_a_stack_alone():
    stack = torch.randn(5, 2, 7, 40)
    packed = torch.full((7, 2, 40), float("nan"))
    outs = list(packed.unbind(1))
    triton_launch.run(triton_launch.fold(triton_launch.INTERPRETER, stack, outs))
    torch.testing.assert_close(packed, stack.sum(0).transpose(0, 1))


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
        sizes = (2, shape.queries, shape.keys, shape.heads, C // shape.heads)
        attended = mha_cases.random_inputs(*sizes, dtype)
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
    # without a copy: the weight is in the kernels' order
    # and narrow layers' weights have a kernel and a fold of their own
    narrow = C <= 128 and dtype != torch.float32
    expected = (2 + 3 if R > 1 else 0) + (1 + 3) + (2 if narrow else 0)
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
