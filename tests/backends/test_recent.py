"""What backends keep from call to call: forms of calls, weights in the kernels' order."""

import importlib

import pytest
import torch
from torch import nn

from pvt_kernels.backends import weights
from pvt_kernels.backends.recent import Recent
from pvt_kernels.backends.weights import permuted

ORDER = (0, 2, 3, 1)


def test_what_is_used_stays_and_what_is_not_goes():
    recent = Recent(2)
    for i in range(20):
        recent.put(i, f"value {i}")
        if i == 0:
            recent.put("used", "kept")
        assert recent.get("used") == "kept"
        assert len(recent) <= 4
    assert recent.get(0) is None
    assert recent.get(19) == "value 19"


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(weights, "_kept", {})


def reload(weight):
    conv = nn.Conv2d(4, 4, 2)
    conv.weight = weight
    conv.load_state_dict({"weight": torch.randn(4, 4, 2, 2), "bias": torch.zeros(4)})


def swap(weight):
    weight.data = torch.randn(4, 4, 2, 2)


def step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], foreach=True).step()


def edit(weight):
    with torch.no_grad():
        weight[0, 0] = 3.0


def transpose(weight):
    weight.data = weight.data.transpose(0, 1)


def train(weight):
    """By an optimizer that PyTorch does not hear of, after a forward that needs gradients."""
    permuted(weight, ORDER, keep=False)
    weight.detach().numpy()[:] += 1.0


@pytest.mark.parametrize("change", [reload, swap, step, edit, transpose, train])
def test_a_kept_copy_is_of_the_weight_as_it_is(change):
    weight = nn.Parameter(torch.randn(4, 4, 2, 2))
    first = permuted(weight, ORDER, keep=True)
    assert permuted(weight, ORDER, keep=True) is first
    change(weight)
    after = permuted(weight, ORDER, keep=True)
    assert torch.equal(after, weight.detach().permute(ORDER))


def test_nothing_is_kept_of_what_has_no_versions_or_is_gone(monkeypatch):
    with torch.inference_mode():
        permuted(nn.Parameter(torch.randn(4, 4, 2, 2)), ORDER, keep=True)
    flat = torch.randn(128)
    permuted(nn.Parameter(flat[:64].view(4, 4, 2, 2)), ORDER, keep=True)
    permuted(torch.randn(4, 4, 2, 2), ORDER, keep=True)
    assert not weights._kept
    weight = nn.Parameter(torch.randn(4, 4, 2, 2))
    permuted(weight, ORDER, keep=True)
    assert len(weights._kept) == 1
    del weight
    assert not weights._kept


def test_a_stream_never_gets_the_copy_that_another_one_writes(monkeypatch):
    """It may not be written yet."""
    streams = iter("ABABBA")
    monkeypatch.setattr(weights, "current_stream", lambda device: next(streams))
    weight = nn.Parameter(torch.randn(4, 4, 2, 2))
    of_a, of_b, again_a, again_b = (permuted(weight, ORDER, keep=True) for _ in range(4))
    assert of_a is again_a and of_b is again_b and of_a is not of_b
    # written to without PyTorch's knowledge, in training: every stream's is dropped
    train(weight)
    for _ in range(2):
        assert torch.equal(permuted(weight, ORDER, keep=True), weight.detach().permute(ORDER))


def test_a_weight_in_that_order_is_not_copied():
    weight = nn.Parameter(torch.randn(4, 4, 2, 2).contiguous(memory_format=torch.channels_last))
    assert permuted(weight, ORDER, keep=True).data_ptr() == weight.data_ptr()
    assert not weights._kept


def test_nothing_is_kept_where_processes_may_share_a_weight_out(monkeypatch):
    weight = nn.Parameter(torch.randn(4, 4, 2, 2))
    # FSDP alone imported, as transformers does, changes no weight
    importlib.import_module("torch.distributed.fsdp")
    assert permuted(weight, ORDER, keep=True) is permuted(weight, ORDER, keep=True)
    monkeypatch.setattr(weights, "_kept", {})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert permuted(weight, ORDER, keep=True) is not permuted(weight, ORDER, keep=True)
