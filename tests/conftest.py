import os

# one process of a parallel run each, and bits that don't depend on how many cores are free
os.environ.setdefault("OMP_NUM_THREADS", "2")
# waiting threads sleep: with more threads than cores, spinning ones take the time of others
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.pop("PVT_KERNELS_BACKEND", None)

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

# Triton reads it when a kernel is defined; without a GPU its kernels run in the interpreter
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _arithmetic_of_the_interpreter() -> Iterator[None]:
    """Sums of products are the same on every CPU, and a fused multiply-add rounds once.

    Those of Triton's interpreter are numpy's, whose BLAS adds up the last rows and columns of a
    tile in another order than the others, and each CPU's in its own. A GPU computes the scores
    alike in forward and backward, and where they are large what the kernels leave of their
    differences rests on that. So they are summed in fp64 and rounded once. And so is a fused
    multiply-add, which the interpreter rounds twice.
    """
    if not os.environ.get("TRITON_INTERPRET") or find_spec("triton") is None:
        yield
        return
    import numpy
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_, a, b, sums, *options):
        product = a.data.astype(numpy.float64) @ b.data.astype(numpy.float64)
        return TensorHandle(product.astype(sums.data.dtype) + sums.data, sums.dtype.scalar)

    def create_fma(_, a, b, addend):
        exact = a.data.astype(numpy.float64) * b.data + addend.data
        return TensorHandle(exact.astype(addend.data.dtype), addend.dtype.scalar)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_dot", create_dot)
        patch.setattr(InterpreterBuilder, "create_fma", create_fma)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_choice_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests pretend other devices, builds and backends, which nothing does in one process."""
    from pvt_kernels.backends import registry
    from pvt_kernels.backends.recent import Recent
    from pvt_kernels.ops import repeated, sr_attention

    monkeypatch.setattr(registry, "_chosen", {})
    monkeypatch.setattr(sr_attention, "_calls", Recent(sr_attention.KEPT))
    monkeypatch.setattr(repeated, "_kept", Recent(sr_attention.KEPT))


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of a layer or a network whether it was found again among those before it."""
    from pvt_kernels.ops import repeated

    found: list[bool] = []
    find = repeated.find

    def counted(key, tensors):
        run = find(key, tensors)
        found.append(run is not None)
        return run

    monkeypatch.setattr(repeated, "find", counted)
    return found


@pytest.fixture(scope="session")
def shapes_data(tmp_path_factory) -> dict[str, Path]:
    """The folders of generated data by layout: 24 images to train and 6 to test."""
    from pvt_kernels.systems.datasets.shapes import make_data

    return make_data(tmp_path_factory.mktemp("shapes") / "data", images=24)
