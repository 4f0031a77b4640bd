"""What patch() and unpatch() change, and what they leave as it was."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import pvt_kernels

from .checks import patched_names, with_lively_weights
from .doubles import Block, OpenMMLabAttention, PvtAttention, PvtV2LinearAttention

TOKENS = Block.H * Block.W


@pytest.fixture
def model():
    blocks = (Block(PvtAttention()), Block(OpenMMLabAttention()), Block(PvtV2LinearAttention()))
    return with_lively_weights(nn.Sequential(*blocks)).eval()


@pytest.fixture
def x():
    return torch.randn(2, TOKENS, 32)


def test_nothing_but_the_computation_changes(model, x):
    model[0].attn.q.weight.requires_grad_(False)
    model[1].attn.register_buffer("mark", torch.ones(1), persistent=False)
    del model[1].attn.mark
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    model[0].attn.register_forward_hook(lambda *args: seen.append(args))
    state = {name: (id(p), p.requires_grad) for name, p in model.named_parameters()}
    saved = copy.deepcopy(model.state_dict())
    text = repr(model)

    pvt_kernels.patch(model)
    assert patched_names(model) == ["0.attn", "1.attn", "2.attn"]
    assert {n: (id(p), p.requires_grad) for n, p in model.named_parameters()} == state
    assert repr(model) == text
    assert isinstance(model[0].attn, PvtAttention)
    assert list(model.state_dict()) == list(saved)
    assert all(map(torch.equal, model.state_dict().values(), saved.values()))

    model.train()(x).sum().backward()
    assert len(seen) == 1
    assert model[0].attn.q.weight.grad is None
    optimizer.step()
    assert not torch.equal(model[0].attn.kv.weight, saved["0.attn.kv.weight"])
    model.load_state_dict(saved)
    assert torch.equal(model[0].attn.kv.weight, saved["0.attn.kv.weight"])


def test_unpatch_gives_everything_back(model, x):
    kinds = [type(module) for module in model.modules()]
    expected = model(x)
    pvt_kernels.patch(model)
    pvt_kernels.unpatch(model)
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(model(x), expected)
    pvt_kernels.unpatch(model)


def test_as_a_context_manager(model, x):
    expected = model(x)
    with pvt_kernels.patch(model) as report:
        assert patched_names(model) == report.swapped == ["0.attn", "1.attn", "2.attn"]
        assert not torch.equal(model(x), expected)
    assert patched_names(model) == []
    assert torch.equal(model(x), expected)


def test_the_block_unpatches_what_it_patched_alone(model):
    pvt_kernels.patch(model[0])
    with pytest.raises(ZeroDivisionError), pvt_kernels.patch(model) as report:
        assert report.skipped == {"0.attn": "it is patched already"}
        raise ZeroDivisionError
    assert patched_names(model) == ["0.attn"]


def test_a_dry_run_changes_nothing(model):
    report = pvt_kernels.patch(model, dry_run=True)
    assert report.swapped == ["0.attn", "1.attn", "2.attn"]
    assert patched_names(model) == []
    assert "would swap" in str(report)
    assert " swapped" not in str(report)


def test_the_report_is_a_table(model):
    model[2].attn.act = nn.Tanh()
    lines = str(pvt_kernels.patch(model)).splitlines()
    assert all(word in lines[1] for word in ("module", "family", "backend", "reason"))
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines[3:-1]]
    assert cells == [
        ["0.attn", "PVT, PVTv2", "swapped", "cpu", ""],
        ["1.attn", "mmdet PVT, mmseg SegFormer", "swapped", "cpu", ""],
        ["2.attn", "PVT, PVTv2", "skipped", "", "its activation is a Tanh, not a GELU"],
    ]


def test_backends_of_the_report_are_those_that_run(model, x):
    report = pvt_kernels.patch(model.double())
    assert [row.backend for row in report.rows] == ["sdpa"] * 3
    pvt_kernels.unpatch(model)
    report = pvt_kernels.patch(model.float())
    decisions = pvt_kernels.explain(model, x)
    assert {row.backend for row in report.rows} == {d.backend for d in decisions} == {"cpu"}


def test_a_backend_is_forced(model, x):
    expected = model(x)
    report = pvt_kernels.patch(model, backend="reference")
    assert [row.backend for row in report.rows] == ["reference"] * 3
    assert {d.backend for d in pvt_kernels.explain(model, x)} == {"reference"}
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    with pvt_kernels.use_backend("sdpa"):
        assert {d.backend for d in pvt_kernels.explain(model, x)} == {"reference"}


def test_a_backend_that_cannot_run_is_a_reason(model):
    report = pvt_kernels.patch(model, backend="cuda")
    assert report.swapped == []
    assert all(why.startswith("cuda can't run it: ") for why in report.skipped.values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((PvtAttention,), TypeError, r"patch: model must be a torch\.nn.Module, got type"),
        ((PvtAttention(), "cpu"), TypeError, "positional"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        pvt_kernels.patch(*arguments)
    with pytest.raises(ValueError, match=r"patch: backend must be one of 'auto', 'cuda', .* 'gpu'"):
        pvt_kernels.patch(PvtAttention(), backend="gpu")
    with pytest.raises(TypeError, match=r"unpatch: model must be a torch\.nn.Module, got NoneType"):
        pvt_kernels.unpatch(None)


def save_and_load(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save_and_load]
)
def test_copies_are_patched_and_independent(model, x, duplicate):
    original = copy.deepcopy(model)
    pvt_kernels.patch(model)
    other = duplicate(model)
    assert patched_names(other) == patched_names(model)
    assert torch.equal(other(x), model(x))
    with torch.no_grad():
        other[0].attn.proj.bias.add_(1)
    assert not torch.equal(other(x), model(x))
    pvt_kernels.unpatch(model)
    assert torch.equal(model(x), original(x))
    assert len(patched_names(other)) == 3


def test_replaced_and_hooked_projections_are_honoured(model, x):
    pvt_kernels.patch(model)
    expected = model(x)
    attention, seen = model[0].attn, []
    for module in (attention.q, attention.sr, attention.attn_drop, model[1].attn.attn):
        module.register_forward_hook(lambda module, *args: seen.append(module))
    torch.testing.assert_close(model(x), expected)
    assert len(seen) == 4
    attention.proj = nn.Sequential(attention.proj, nn.Tanh())
    assert not torch.allclose(model(x), expected)


def test_unpatch_refuses_a_class_that_changed(model):
    pvt_kernels.patch(model)
    attention = model[1].attn
    attention.__class__ = type("Sharded", (type(attention),), {})
    with pytest.raises(RuntimeError, match="class of a patched Sharded was changed since"):
        pvt_kernels.unpatch(model)
    assert len(patched_names(model)) == 3


def test_compiles_without_graph_breaks(model, x):
    torch.compiler.reset()
    expected = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    unpatched = compiled(x)
    with pvt_kernels.patch(model):
        out = compiled(x)
        actual = torch.autograd.grad(out.sum(), list(model.parameters()))
        assert "pvt_kernels.multi_head_attention_forward" in str(counter.graphs[-1].graph)
        torch.testing.assert_close(out, unpatched)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    # code compiled before a patch, or within one, does not outlive it
    assert torch.equal(compiled(x), unpatched)


def test_compiles_for_a_forced_backend(model, x):
    torch.compiler.reset()
    pvt_kernels.patch(model, backend="reference")
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
    arguments = [arg for node in counter.graphs[-1].graph.nodes for arg in node.args]
    assert "reference" in arguments


def test_exports(model, x):
    pvt_kernels.patch(model)
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    targets = {str(node.target) for node in program.graph.nodes}
    assert "pvt_kernels.multi_head_attention_forward.default" in targets
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = torch.randn(5, TOKENS, 32)
    torch.testing.assert_close(loaded(other), model(other))
    assert list(program.state_dict) == list(model.state_dict())
