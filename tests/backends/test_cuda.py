"""Why the CUDA backend can't run a call, on devices that aren't here."""

import pytest
import torch

import pvt_kernels
from pvt_kernels.backends import (
    AttentionInputs,
    FeedForwardInputs,
    SpatialReductionInputs,
    cuda,
    decide,
)

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch):
    """gpu(name, capability, code=..., archs=...): a device and a build to ask about."""

    def pretend(name, capability, code=None, archs=("sm_75", "sm_80", "compute_80"), as_arch=None):
        build = {"cuda_missing": None, "cuda_archs": list(archs), "cuda_treat_as_arch": as_arch}
        device = {
            "name": name,
            "compute_capability": capability,
            "shared_memory_per_block": 64 * 1024,
            "code": code,
            "code_missing": None if code else "no kernel image (cudaErrorNoKernelImageForDevice)",
        }
        monkeypatch.setattr(torch.version, "cuda", "12.6")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(cuda, "build_info", lambda: build)
        monkeypatch.setattr(cuda, "cuda_device", lambda index: device)
        cuda._inspect.cache_clear()

    yield pretend
    cuda._inspect.cache_clear()


def reasons(dtype=torch.float16, head_dim=64, dropout=False):
    return cuda.BACKEND.not_supported_reasons(AttentionInputs(GPU, dtype, head_dim, dropout))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_v100_runs_by_default(gpu, dtype):
    gpu("Tesla V100", (7, 0), code="sm_70", archs=("sm_70", "compute_70"))
    assert decide(AttentionInputs(GPU, dtype, 64, False)).backend == "cuda"
    assert decide(SpatialReductionInputs(GPU, dtype, 64, 8)).backend == "cuda"
    with pvt_kernels.use_backend("cuda"):
        assert decide(FeedForwardInputs(GPU, dtype, 64, 512, False, False)).backend == "cuda"


def test_bfloat16_on_a_v100_names_what_runs(gpu):
    gpu("Tesla V100", (7, 0), code="sm_70", archs=("sm_70", "compute_70"))
    (reason,) = reasons(torch.bfloat16)
    assert "Tesla V100 has compute capability 7.0" in reason
    assert "use float16 or float32" in reason
    assert decide(AttentionInputs(GPU, torch.bfloat16, 64, False)).backend == "sdpa"


def test_a_build_without_sm_70_says_how_to_build_it(gpu):
    gpu("Tesla V100", (7, 0))
    (reason,) = reasons()
    assert "none of the code in this build (sm_75, sm_80, compute_80)" in reason
    assert "install CUDA 12.x or older" in reason
    assert "PVT_KERNELS_CUDA_ARCHS=70 pip install ." in reason


def test_bfloat16_needs_the_code_of_8_0(gpu):
    gpu("A100", (8, 0), code="compute_75", archs=("sm_75", "compute_75"))
    assert reasons(torch.float16) == []
    (reason,) = reasons(torch.bfloat16)
    assert "PVT_KERNELS_CUDA_ARCHS=80 pip install ." in reason
    gpu("A100", (8, 0), code="sm_80")
    assert reasons(torch.bfloat16) == []


@pytest.mark.parametrize(("as_arch", "version"), [(70, "7.0"), (75, "7.5")])
def test_bfloat16_is_refused_by_a_build_that_treats_gpus_as_older(gpu, as_arch, version):
    gpu("H100", (9, 0), code="sm_90", archs=("sm_90", "compute_80"), as_arch=as_arch)
    assert reasons(torch.float16) == reasons(torch.float32) == []
    assert reasons(torch.bfloat16) == [
        f"this build treats every GPU as one of compute capability {version} "
        f"(PVT_KERNELS_TREAT_AS_ARCH={as_arch}), and bfloat16 needs 8.0 or newer: use float16 or "
        "float32"
    ]


def test_older_gpus_are_out(gpu):
    gpu("Tesla P100", (6, 0))
    assert reasons() == [
        "the Tesla P100 has compute capability 6.0, and the kernels need 7.0 or newer"
    ]


def test_sizes_dtypes_and_dropout(gpu):
    gpu("A100", (8, 0), code="sm_80")
    assert reasons(head_dim=136) == ["head_dim is 136, no multiple of 8 up to 128"]
    assert reasons(head_dim=20) == ["head_dim is 20, no multiple of 8 up to 128"]
    assert reasons(dropout=True) == ["attention dropout is active"]
    assert "the dtype is torch.float64" in reasons(torch.float64)[0]
    reduction = SpatialReductionInputs(GPU, torch.float16, 4104, 2)
    assert cuda.BACKEND.not_supported_reasons(reduction) == [
        "the number of channels is 4104, no multiple of 8 up to 4096"
    ]
    feed_forward = FeedForwardInputs(GPU, torch.float16, 20, 100, False, True)
    assert cuda.BACKEND.not_supported_reasons(feed_forward) == [
        "the number of hidden channels is 100, no multiple of 8",
        "dropout of the hidden layer is active",
    ]


def test_other_devices_and_builds(monkeypatch):
    with pvt_kernels.use_backend("cuda"), pytest.raises(RuntimeError, match="not an NVIDIA GPU"):
        pvt_kernels.attention(*(torch.zeros(1, 2, 1, 8) for _ in range(3)))
    monkeypatch.setattr(cuda, "build_info", lambda: {"cuda_missing": "no nvcc on PATH"})
    assert reasons()[0] == "pvt_kernels was built without CUDA: no nvcc on PATH"
