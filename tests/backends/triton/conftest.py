"""Fixtures that watch the kernels' memory, or choose between their forms."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _poison(monkeypatch):
    """Every output and workspace starts as NaN, so that what is not written shows."""
    real, real_like = torch.Tensor.new_empty, torch.empty_like

    def poisoned(self, *args, **kwargs):
        tensor = real(self, *args, **kwargs)
        # of bytes too, the workspace of several tensors: all ones are NaN in every dtype
        return tensor.fill_(255 if tensor.dtype == torch.uint8 else float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    monkeypatch.setattr(
        torch, "empty_like", lambda t, **options: real_like(t, **options).fill_(float("nan"))
    )


@pytest.fixture
def splits(request, monkeypatch):
    for op in ("attention", "spatial_reduction"):
        monkeypatch.setattr(
            f"pvt_kernels.backends.triton.{op}.splits_of", lambda *_, **__: request.param
        )
    return request.param


@pytest.fixture(params=["fused", "unfused"])
def form(request, monkeypatch):
    if request.param == "unfused":
        monkeypatch.setattr("pvt_kernels.backends.triton.multi_head_attention.FUSED_WIDTHS", ())
    return request.param


WALL = 2**15


@pytest.fixture
def between_walls(monkeypatch):
    """A function that from then on puts all that kernels are given between walls of NaN."""
    from pvt_kernels.backends.triton import launch as triton_launch

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


@pytest.fixture
def launched(monkeypatch):
    """What would be launched on an H100, none of which runs."""
    from pvt_kernels.backends.triton import launch as triton_launch

    launches = []
    monkeypatch.setattr(triton_launch, "is_interpreted", lambda: False)
    monkeypatch.setattr(triton_launch, "_gpu", lambda _: triton_launch.Gpu(90, 132))
    monkeypatch.setattr(triton_launch, "_launch", lambda launch, _: launches.append(launch))
    return launches
