"""use_backend() holds for its own thread and asyncio task, also in compiled code."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pvt_kernels import SRAttention, patch, use_backend
from pvt_kernels.backends import forced

from ..integrations.doubles import PvtAttention


def in_a_thread(fn):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def test_threads_force_their_own_backend():
    barrier = threading.Barrier(2)
    seen = {}

    def work(name):
        for _ in range(20):
            barrier.wait()
            with use_backend(name):
                barrier.wait()
                seen.setdefault(name, set()).add(forced.name)
                barrier.wait()
            seen.setdefault("after", set()).add(forced.name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("sdpa", "reference")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"sdpa": {"sdpa"}, "reference": {"reference"}, "after": {None}}
    assert forced.name is None


def test_tasks_force_their_own_backend():
    async def work(name, steps):
        with use_backend(name):
            for _ in range(steps):
                await asyncio.sleep(0)
                assert forced.name == name
        assert forced.name is None

    async def both():
        await asyncio.gather(work("sdpa", 3), work("reference", 5), work("cpu", 4))

    asyncio.run(both())
    assert forced.name is None


def test_a_thread_inherits_what_it_is_given_alone():
    with use_backend("sdpa"):
        assert in_a_thread(lambda: forced.name) is None
        assert in_a_thread(lambda: in_a_thread(lambda: forced.name)) is None
        context = contextvars.copy_context()
        assert in_a_thread(lambda: context.run(lambda: forced.name)) == "sdpa"


def test_nested_and_left_by_an_exception():
    with use_backend("sdpa"):
        with pytest.raises(ZeroDivisionError), use_backend("reference"):
            raise ZeroDivisionError
        assert forced.name == "sdpa"
    assert forced.name is None


def test_a_models_own_backend_is_for_its_calls_alone():
    """While one thread is within a call of a patched model, others choose as they would."""
    inside, go_on = threading.Event(), threading.Event()
    model = PvtAttention().double().eval()
    x = torch.randn(1, 24, 32, dtype=torch.float64)
    patch(model, backend="sdpa")

    def wait(*_):
        seen.append(forced.name)
        inside.set()
        assert go_on.wait(60)

    seen = []
    model.q.register_forward_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(model, x, 4, 6)
        assert inside.wait(60)
        assert forced.name is None
        # which could not run in fp64 on "cpu", were it forced
        with use_backend("cpu"):
            SRAttention(32, 2)(x.float(), 4, 6)
        go_on.set()
        call.result()
    assert seen == ["sdpa"]
    assert forced.name is None


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_guards_on_the_callers_context(dynamic):
    torch.compiler.reset()
    layer = SRAttention(32, 2, sr_ratio=2)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=dynamic)
    x = torch.randn(1, 24, 32)

    def backends():
        compiled(x, 4, 6)
        return ["sr_attention_forward" in str(graph.graph) for graph in counter.graphs]

    assert backends() == [True]
    with use_backend("sdpa"):
        assert backends() == [True, False]
        # another thread is not within it, and takes the code compiled before
        assert in_a_thread(backends) == [True, False]
        assert torch.equal(in_a_thread(lambda: compiled(x, 4, 6)), layer_on("cpu", layer, x))
        assert torch.equal(compiled(x, 4, 6), layer(x, 4, 6))
    assert backends() == [True, False]
    assert torch.equal(compiled(x, 4, 6), layer(x, 4, 6))


def layer_on(backend, layer, x):
    with use_backend(backend):
        return layer(x, 4, 6)


@pytest.mark.parametrize("breaks", [False, True])
def test_use_backend_within_compiled_code(breaks):
    torch.compiler.reset()
    layer = SRAttention(32, 2, sr_ratio=2)

    def fn(x):
        with use_backend("sdpa"):
            y = layer(x, 4, 6)
            if breaks:
                torch._dynamo.graph_break()
            y = layer(y, 4, 6)
        return layer(y, 4, 6)

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(fn, backend=counter, fullgraph=not breaks)
    x = torch.randn(1, 24, 32)
    torch.testing.assert_close(compiled(x), fn(x))
    assert forced.name is None
    code = "".join(str(graph.graph) for graph in counter.graphs)
    assert code.count("torch.ops.pvt_kernels.sr_attention_forward") == 1
    assert code.count("scaled_dot_product_attention") == 2
    with use_backend("reference"):
        torch.testing.assert_close(compiled(x), fn(x))
        assert forced.name == "reference"
