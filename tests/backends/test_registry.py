"""The choice of a backend: priorities, forcing, fallback and explain()."""

import warnings
from types import SimpleNamespace

import pytest
import torch

import pvt_kernels
from pvt_kernels._C import cpu
from pvt_kernels.backends import (
    AttentionInputs,
    FeedForwardInputs,
    MultiHeadAttentionInputs,
    SpatialReductionInputs,
    decide,
    registry,
)
from pvt_kernels.backends.base import Backend
from pvt_kernels.backends.reference import attention as attention_reference

CPU_ATTENTION = AttentionInputs(torch.device("cpu"), torch.float32, 64, False)


def picky_reasons(inputs):
    if inputs.dtype != torch.float32:
        return [f"dtype {inputs.dtype} is not torch.float32"]
    return []


def picky(attention):
    """A kernel backend for the CPU's attention that takes fp32 and nothing else."""
    reasons = {
        "attention": picky_reasons,
        "spatial_reduction": lambda inputs: [f"no kernel for {inputs.op}"],
    }
    return Backend("cpu", {"attention": attention}, reasons)


@pytest.fixture
def picky_backend(monkeypatch):
    monkeypatch.setitem(registry.BACKENDS, "cpu", picky(attention_reference))
    monkeypatch.setattr(registry, "_warned", set())


def random_qkv(dtype=torch.float32):
    q = torch.randn(1, 6, 2, 8, dtype=dtype)
    k, v = torch.randn(2, 1, 4, 2, 8, dtype=dtype)
    return q, k, v


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 0), ("cuda", "sdpa", "reference")),
        ((7, 5), ("cuda", "sdpa", "reference")),
        ((8, 0), ("triton", "cuda", "sdpa", "reference")),
        ((9, 0), ("triton", "cuda", "sdpa", "reference")),
    ],
)
def test_priority_by_compute_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda", 0)
    assert registry.priority(AttentionInputs(gpu, torch.float16, 64, False)) == expected
    # no run has these kernels on a GPU
    kernels = expected[: expected.index("sdpa")]
    wanted = ("sdpa", *kernels, "reference")
    networks = FeedForwardInputs(gpu, torch.float16, 64, 512, False, False)
    assert registry.priority(networks) == wanted


def test_priority_without_nvidia_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    for device in (torch.device("cuda", 0), torch.device("mps")):
        inputs = AttentionInputs(device, torch.float16, 64, False)
        assert registry.priority(inputs) == ("sdpa", "reference")


@pytest.mark.parametrize("path", ["avx512_bf16", "amx_bf16"])
def test_priority_on_the_cpu(monkeypatch, path):
    monkeypatch.setattr(registry.cpu_kernels, "capability", lambda: path)
    assert registry.priority(CPU_ATTENTION) == ("cpu", "sdpa", "reference")
    amx = path == "amx_bf16"
    bf16 = ("sdpa", "cpu", "reference") if amx else ("cpu", "sdpa", "reference")
    inputs = AttentionInputs(torch.device("cpu"), torch.bfloat16, 64, False)
    assert registry.priority(inputs) == bf16


@pytest.mark.parametrize(
    ("path", "dtype", "inference"),
    [("avx512_bf16", torch.bfloat16, "sdpa"), ("avx2", torch.float32, "cpu")],
)
def test_wide_networks_without_a_convolution(monkeypatch, path, dtype, inference):
    """Where a run shows PyTorch's layers to be faster, and nowhere else."""
    cpu = torch.device("cpu")

    def first(channels, convolved, dtype=dtype, gradients=True) -> str:
        facts = (dtype, channels, 4 * channels, convolved, False, gradients)
        return registry.priority(FeedForwardInputs(cpu, *facts))[0]

    monkeypatch.setattr(registry.cpu_kernels, "capability", lambda: path)
    assert first(256, False) == first(512, False) == "sdpa"
    assert first(256, False, gradients=False) == inference
    assert first(128, False) == first(512, True) == first(512, False, torch.float16) == "cpu"
    monkeypatch.setattr(registry.cpu_kernels, "capability", lambda: "avx512")
    assert first(512, False) == "cpu"


def test_the_code_path_in_use_decides_and_not_the_fastest(monkeypatch):
    """So that what is measured with a lower one forced is what a lesser CPU would run."""
    facts = (torch.float32, 256, 1024, False, False, True)
    for path in registry.cpu_kernels.capabilities():
        monkeypatch.setenv("PVT_KERNELS_CPU_CAPABILITY", path)
        chosen = registry.choose(FeedForwardInputs, torch.device("cpu"), *facts)
        assert chosen == ("sdpa" if path == "avx2" else "cpu"), path


def test_a_decision_says_why_sdpa_comes_first(monkeypatch):
    rule = next(rule for rule in registry.SDPA_FIRST if rule.device_type == "cpu")
    monkeypatch.setattr(registry.cpu_kernels, "capability", lambda: rule.code_path)
    inputs = AttentionInputs(torch.device("cpu"), rule.dtype, 64, False)
    decision = decide(inputs)
    assert (decision.backend, decision.reasons["cpu"]) == ("sdpa", [rule.reason])
    assert decide(CPU_ATTENTION).reasons["cpu"] == []
    with pvt_kernels.use_backend("cpu"):
        forced = decide(inputs)
    assert (forced.backend, forced.reasons["cpu"]) == ("cpu", [])


def test_the_first_that_can_is_chosen(picky_backend):
    assert decide(CPU_ATTENTION).backend == "cpu"
    half = AttentionInputs(torch.device("cpu"), torch.float16, 64, False)
    assert decide(half).backend == "sdpa"


def test_decision_lists_every_backend_with_its_reasons():
    decision = decide(CPU_ATTENTION)
    assert set(decision.reasons) == set(pvt_kernels.backends.BACKEND_NAMES)
    assert decision.reasons["sdpa"] == []
    assert "never chosen for tensors on cpu" in decision.reasons["triton"]
    for name, reasons in decision.reasons.items():
        assert f"{name}: {'; '.join(reasons) or 'can run'}" in str(decision)


def test_use_backend_forces_and_restores():
    before = decide(CPU_ATTENTION).backend
    with pvt_kernels.use_backend("reference"):
        assert decide(CPU_ATTENTION).backend == "reference"
        with pvt_kernels.use_backend("sdpa"):
            assert decide(CPU_ATTENTION).backend == "sdpa"
        assert decide(CPU_ATTENTION).backend == "reference"
    assert decide(CPU_ATTENTION).backend == before


def test_environment_variable_forces_and_use_backend_wins(monkeypatch):
    monkeypatch.setenv("PVT_KERNELS_BACKEND", "reference")
    assert decide(CPU_ATTENTION).backend == "reference"
    with pvt_kernels.use_backend("sdpa"):
        assert decide(CPU_ATTENTION).backend == "sdpa"


def test_unknown_names_say_what_is_accepted(monkeypatch):
    accepted = "must be one of cuda, triton, cpu, sdpa, reference, got 'flash'"
    with pytest.raises(ValueError, match=f"use_backend: name {accepted}"):
        pvt_kernels.use_backend("flash").__enter__()
    monkeypatch.setenv("PVT_KERNELS_BACKEND", "flash")
    with pytest.raises(ValueError, match=f"PVT_KERNELS_BACKEND {accepted}"):
        pvt_kernels.attention(*random_qkv())


def test_a_forced_backend_that_cannot_run_raises_with_all_reasons(picky_backend):
    with (
        pvt_kernels.use_backend("cpu"),
        pytest.raises(RuntimeError, match="forced backend 'cpu' can't run") as raised,
    ):
        pvt_kernels.attention(*random_qkv(torch.float64))
    message = str(raised.value)
    assert "dtype torch.float64 is not torch.float32" in message
    assert "attention(device=cpu, dtype=torch.float64, head_dim=8, dropout=False)" in message
    for name in pvt_kernels.backends.BACKEND_NAMES:
        assert f"  {name}: " in message


def test_fallback_warns_once_with_the_reasons(picky_backend):
    half = random_qkv(torch.float16)
    with pytest.warns(UserWarning, match=r"falls back.*'sdpa'.*torch\.float16 is not") as caught:
        pvt_kernels.attention(*half)
        pvt_kernels.attention(*half)
    assert len(caught) == 1


def test_no_warning_where_a_kernel_runs_or_a_backend_is_forced(picky_backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pvt_kernels.attention(*random_qkv())
        with pvt_kernels.use_backend("sdpa"):
            pvt_kernels.attention(*random_qkv(torch.float16))


def test_explain_lists_the_ops_of_a_layer_without_running_it():
    layer = pvt_kernels.SRAttention(16, 2, sr_ratio=2, attn_drop=0.1, proj_drop=0.1)
    x = torch.randn(2, 24, 16)
    state = torch.get_rng_state()
    reduction, attention = pvt_kernels.explain(layer, x, 4, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert reduction.inputs == SpatialReductionInputs(x.device, x.dtype, 16, 2)
    assert attention.inputs == MultiHeadAttentionInputs(x.device, x.dtype, 8, True)


@pytest.mark.parametrize(("backend", "fused"), [("cpu", True), ("sdpa", False)])
def test_explain_names_the_whole_op_and_whether_it_is_fused(backend, fused):
    layer = pvt_kernels.SRAttention(16, 2)
    with pvt_kernels.use_backend(backend):
        (decision,) = pvt_kernels.explain(layer, torch.randn(2, 24, 16), 4, 6)
    assert decision.fused == fused
    first = str(decision).splitlines()[0]
    assert first.startswith("multi_head_attention(device=cpu, dtype=torch.float32, head_dim=8")
    outcome = first.split(": ", 1)[1]
    if fused:
        assert outcome == f"cpu (its kernels for {cpu.capability()})"
    else:
        assert outcome == "sdpa, PyTorch's linear layers around its attention"


def test_a_choice_is_made_once_for_equal_calls(monkeypatch):
    asked = []
    real = registry.select
    monkeypatch.setattr(registry, "select", lambda inputs: asked.append(inputs) or real(inputs))
    for _ in range(3):
        pvt_kernels.attention(*random_qkv())
    assert len(asked) == 1
    monkeypatch.setenv("PVT_KERNELS_BACKEND", "reference")
    pvt_kernels.attention(*random_qkv())
    with pvt_kernels.use_backend("sdpa"):
        pvt_kernels.attention(*random_qkv())
    pvt_kernels.attention(*random_qkv(torch.float64))
    assert len(asked) == 4


def test_active_attention_dropout_runs_on_sdpa_and_explain_says_so():
    layer = pvt_kernels.SRAttention(16, 2, attn_drop=0.1)
    (training,) = pvt_kernels.explain(layer, torch.randn(2, 24, 16), 4, 6)
    assert training.backend == "sdpa"
    assert training.reasons["reference"] == ["attention dropout is active"]
    (evaluation,) = pvt_kernels.explain(layer.eval(), torch.randn(2, 24, 16), 4, 6)
    assert not evaluation.inputs.dropout
    assert evaluation.reasons["reference"] == []


def test_the_backward_runs_on_the_forwards_backend(monkeypatch):
    calls = []

    def recording(name):
        def backward(*args):
            calls.append(name)
            return attention_reference.backward(*args)

        return SimpleNamespace(forward=attention_reference.forward, backward=backward)

    monkeypatch.setitem(registry.BACKENDS, "cpu", picky(recording("cpu")))
    q, k, v = (t.requires_grad_() for t in random_qkv())
    with pvt_kernels.use_backend("cpu"):
        o = pvt_kernels.attention(q, k, v)
    with pvt_kernels.use_backend("reference"):
        o.sum().backward()
    assert calls == ["cpu"]
