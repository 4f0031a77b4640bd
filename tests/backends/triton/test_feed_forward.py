"""The feed-forward's kernels in the interpreter: slabs and their borders, memory, walks, NaN."""

import pytest
import torch

from pvt_kernels import feed_forward, use_backend
from pvt_kernels.backends import slabs

from ...error_budget import with_gradients
from ...ops.cases.feed_forward import Case, check_against_oracle, of_tensors, random_inputs
from .kernels import feed_forward_tiles, needs_interpreter, triton_feed_forward, triton_launch

pytestmark = needs_interpreter
CASES = (
    Case(2, 7, 18, 16, 40),
    Case(1, 7, 5, 8, 33, relu_before_conv=True),
    Case(2, 5, 3, 8, 16, activation="relu"),
    Case(2, 11, 3, 8, 24, conv=False),
)


def in_slabs(monkeypatch, tokens):
    monkeypatch.setattr(slabs, "slab_tokens", lambda *_: tokens)


@pytest.mark.parametrize(("rows", "dtype"), [(1, torch.float32), (2, torch.float16)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_slabs_of_few_rows(case, rows, dtype, monkeypatch):
    in_slabs(monkeypatch, rows * case.W)
    check_against_oracle("triton", case, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_slabs_make_no_difference_to_what_tokens_get(case, monkeypatch):
    """Every token's result and gradient sees the same neighbours, whichever slab it is in."""
    inputs, dy = random_inputs(case), torch.randn(case.B, case.H * case.W, case.C)

    def result_and_dx(tokens):
        in_slabs(monkeypatch, tokens)
        with use_backend("triton"):
            return with_gradients(of_tensors(feed_forward, case), inputs, dy)[:2]

    whole = result_and_dx(10**9)
    for rows in (1, 2, 3, case.H - 1):
        torch.testing.assert_close(result_and_dx(rows * case.W), whole, rtol=1e-5, atol=2e-6)


@pytest.fixture
def fresh_plans():
    """None made before is used, and none that the test makes is used after it."""

    def clear():
        for plans in ("_forward_plan", "_dc_plan", "_dh_plan"):
            getattr(triton_feed_forward, plans).cache_clear()

    clear()
    yield
    clear()


@pytest.mark.usefixtures("fresh_plans")
@pytest.mark.parametrize("least_rows", [1, 3])
def test_blocks_of_few_rows(least_rows, monkeypatch):
    monkeypatch.setattr(feed_forward_tiles, "LEAST_ROWS", least_rows)
    monkeypatch.setattr(feed_forward_tiles, "WAVES", 1000)
    check_against_oracle("triton", CASES[0], torch.float16)


def test_every_run_gives_the_same_bits(monkeypatch):
    case = CASES[0]
    in_slabs(monkeypatch, 3 * case.W)
    inputs, dy = random_inputs(case, torch.float16), torch.randn(2, 7 * 18, 16).half()
    with use_backend("triton"):
        first, second = (with_gradients(of_tensors(feed_forward, case), inputs, dy) for _ in "ab")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_hidden_layer_is_never_held_whole(case, monkeypatch):
    rows, halo = 2, 2 * case.conv
    in_slabs(monkeypatch, rows * case.W)
    sizes = []
    real = torch.Tensor.new_empty

    def new_empty(tensor, *shape, **options):
        made = real(tensor, *shape, **options)
        if made.dim() == 2 and made.shape[1] == triton_launch.padded(case.D):
            sizes.append(len(made))
        return made

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    with use_backend("triton"):
        x, *layers = random_inputs(case)
        of_tensors(feed_forward, case)(x, *layers)
        assert len(sizes) == 1 + case.conv
        assert max(sizes) <= (rows + halo) * case.W
        sizes.clear()
        inputs = [t.requires_grad_() for t in (x, *layers)]
        of_tensors(feed_forward, case)(*inputs).sum().backward()
    assert len(sizes) == (1 + case.conv) + (2 + case.conv)
    assert max(sizes) <= (rows + 2 * halo) * case.W


def test_no_kernel_uses_what_lies_around_its_tensors(between_walls, monkeypatch):
    results = []
    for around in (lambda: None, between_walls):
        around()
        for case in CASES:
            torch.manual_seed(0)
            inputs = random_inputs(case, torch.float16)
            in_slabs(monkeypatch, 3 * case.W)
            with use_backend("triton"):
                op, dy = of_tensors(feed_forward, case), torch.ones(case.B, 1, 1)
                results.append(with_gradients(op, inputs, dy.expand(inputs[0].shape)))
    for actual, expected in zip(results[len(CASES) :], results[: len(CASES)], strict=True):
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_nan_of_a_token_reaches_its_neighbours_alone(activation, monkeypatch):
    case = Case(1, 8, 6, 8, 16, activation=activation, relu_before_conv=True)
    in_slabs(monkeypatch, 2 * case.W)
    x, *layers = random_inputs(case)
    x[0, 3 * 6 + 2] = float("nan")
    with use_backend("triton"):
        result = of_tensors(feed_forward, case)(x, *layers).view(8, 6, 8)
    reached = torch.zeros(8, 6, dtype=torch.bool)
    reached[2:5, 1:4] = True
    assert torch.equal(result.isnan().all(-1), reached)
    assert torch.equal(result.isnan().any(-1), reached)


@pytest.mark.parametrize(
    ("B", "H", "W", "tokens", "expected"),
    [
        # rows of nearly the same number in each slab, of one image each
        (1, 200, 304, 40 * 304, [(0, 1, row, 40) for row in range(0, 200, 40)]),
        (2, 10, 4, 16, [(i, 1, row, min(4, 10 - row)) for i in (0, 1) for row in (0, 4, 8)]),
        # a row is the least; images that fit go together
        (1, 2, 9, 5, [(0, 1, 0, 1), (0, 1, 1, 1)]),
        (5, 2, 3, 13, [(0, 2, 0, 2), (2, 2, 0, 2), (4, 1, 0, 2)]),
        (0, 2, 3, 13, []),
    ],
)
def test_division_into_slabs(B, H, W, tokens, expected):
    assert [slab[:4] for slab in slabs.divided(B, H, W, tokens)] == expected


def test_slabs_fit_into_l2_and_fill_the_gpu():
    """PVTv2's first stage, on an H100 and on a V100 with 6 MB of L2."""
    h100, v100 = (50 * 2**20, 132), (6 * 2**20, 80)
    for buffers in (2, 3):
        tokens = slabs.fitting_tokens(*h100, 512, 2, buffers)
        assert tokens * 512 * 2 * buffers <= 25 * 2**20
        assert tokens > 8448
        assert slabs.fitting_tokens(*v100, 512, 2, buffers) * 512 == 2 * 80 * 128 * 128


def test_walks_cover_a_window_once():
    gpu = triton_launch.Gpu(90, 132)
    window = slabs.Window(1, 40, 304, 1, 1)
    walk = feed_forward_tiles.walk(gpu, window, 512, resident=4)
    assert walk.blocks >= 2 * 132 * 4
    assert walk.blocks == walk.parts * 512 // feed_forward_tiles.CHANNELS
    assert walk.parts == 19 * -(-40 // walk.rows)
