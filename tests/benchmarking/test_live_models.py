"""Other libraries' models in the benchmark, before and after patch()."""

import dataclasses

import pytest
import torch
from torch import nn

from pvt_kernels.benchmarking import cli, live_models, memory, runner
from pvt_kernels.benchmarking.cases import FORWARD, PATCHED, TRAINING, Case, Suite, patched_suite
from pvt_kernels.benchmarking.contenders import EAGER, PACKAGE, SDPA, UNPATCHED_NAMES
from pvt_kernels.benchmarking.live_models import LIVE_MODELS, smooth_activations
from pvt_kernels.benchmarking.results import OK
from pvt_kernels.benchmarking.workloads import workload
from pvt_kernels.cli import main
from pvt_kernels.integrations.classes import is_patched

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("timm", reason="timm is not installed")

SIZE = (64, 96)
SUITE = Suite((), seconds=0.0, rounds=2, backbone_rounds=2, quick=True)
FULL_SUITE = dataclasses.replace(SUITE, quick=False)
MODES = pytest.mark.parametrize("mode", [FORWARD, TRAINING])


def case_of(model, mode=FORWARD, size=SIZE):
    return Case(PATCHED, model, size, mode, "fp32", 1, "cpu")


@pytest.fixture
def no_memory_measurement(monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda case, contender: memory.Peak(1, 1.0))


@MODES
@pytest.mark.parametrize("model", ["segformer_b0", "transformers_pvt"])
def test_contenders_are_right_and_timed(model, mode, no_memory_measurement):
    found = runner.run_case(case_of(model, mode), SUITE)
    cores = ["eager", "SDPA"] if model == "segformer_b0" else ["eager"]
    assert [m.contender for m in found] == [*(f"unpatched, {core}" for core in cores), "patched"]
    for m in found:
        assert m.status == OK, m.reason
        assert not m.mark, (m.contender, m.over_budget)
        assert len(m.samples) == 2
        assert m.errors.keys() == {"output"} | ({"x", "parameters"} if mode == TRAINING else set())


@pytest.mark.parametrize("model", LIVE_MODELS)
def test_contenders_differ_in_their_attention_alone(model):
    work = workload(case_of(model), real_input=False)
    built = {c.name: work.build(c) for c in LIVE_MODELS[model].contenders(SIZE)}
    assert all(
        any(map(is_patched, module.modules())) == (name == "patched")
        for name, module in built.items()
    )
    assert not any(map(is_patched, work.model.modules()))
    states = [module.state_dict() for module in built.values()]
    assert all(torch.equal(states[0][key], state[key]) for state in states for key in states[0])


def test_large_images_are_worth_compiling_for():
    names = [c.name for c in LIVE_MODELS["segformer_b0"].contenders((1024, 1024))]
    assert names == [*UNPATCHED_NAMES, "patched"]


@pytest.mark.thorough
@MODES
def test_compiled_models_are_right(mode, no_memory_measurement, monkeypatch):
    monkeypatch.setattr(live_models, "LEAST_COMPILED_PIXELS", 0)
    found = {m.contender: m for m in runner.run_case(case_of("segformer_b0", mode), FULL_SUITE)}
    compiled = found["unpatched, compiled"]
    assert (compiled.status, compiled.mark) == (OK, "")


def test_cores_of_unpatched_models():
    work = workload(case_of("timm_pvt_v2_b2"), real_input=False)
    eager, sdpa, _ = (work.build(c) for c in LIVE_MODELS["timm_pvt_v2_b2"].contenders(SIZE))
    fused = [[m.fused_attn for m in x.modules() if hasattr(m, "fused_attn")] for x in (eager, sdpa)]
    assert fused == [[False] * 16, [True] * 16]
    work = workload(case_of("segformer_b0"), real_input=False)
    kinds = [
        work.build(contender).model.config._attn_implementation
        for contender in LIVE_MODELS["segformer_b0"].contenders(SIZE)[:2]
    ]
    assert kinds == [EAGER, SDPA]


def test_gradients_of_large_images_are_checked_at_another_size():
    work = workload(case_of("segformer_b0", TRAINING, (544, 512)), real_input=False)
    inputs, note = work.check_inputs(LIVE_MODELS["segformer_b0"].contenders(SIZE)[0])
    assert note == "checked at 512x512"
    assert inputs.x.shape[2:] == (512, 512)
    assert work.inputs.x.shape[2:] == (544, 512)


def test_smooth_activations_are_taken_back():
    relu = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(relu))
    with pytest.raises(ZeroDivisionError), smooth_activations(model):
        assert type(model[1][0]) is nn.GELU
        raise ZeroDivisionError
    assert model[1][0] is relu


def test_suites():
    full = patched_suite(False, "cpu").cases
    assert len(full) == 2 * (6 + 6 + 6 + 4 + 2)
    assert {(c.subject, c.size) for c in full} >= {
        ("segformer_b2", (1024, 1024)),
        ("timm_pvt_v2_b2", (800, 1216)),
    }
    assert len(patched_suite(True, "cpu").cases) == 2
    chosen = patched_suite(False, "cpu", sizes=((512, 512),), models=("segformer_b2",)).cases
    assert [(c.subject, c.size, c.mode) for c in chosen] == [
        ("segformer_b2", (512, 512), FORWARD),
        ("segformer_b2", (512, 512), TRAINING),
    ]


def test_needs_grow_with_the_matrices_of_queries_by_keys():
    live = LIVE_MODELS["segformer_b2"]
    sizes = ((1024, 1024), 1, torch.float32, 10**6)
    assert live.growth(EAGER, True, *sizes, True) > live.growth(SDPA, True, *sizes, True) + 10**9
    assert live.growth(SDPA, True, *sizes, True) > live.growth(SDPA, True, *sizes, False)
    # without the feed-forward networks' hidden layers
    assert live.growth(SDPA, True, *sizes, True) > live.growth(PACKAGE, False, *sizes, True) + 10**9


def test_bench_patch_writes_results_table_and_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "patched_suite", lambda *_, **__: SUITE_OF_ONE)
    assert main(["bench-patch", "--device=cpu", "--output", str(tmp_path)]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"patched.json", "patched.md", "patched-fp32.png"}
    table = (tmp_path / "patched.md").read_text()
    assert "Other libraries' models, 64x96, forward" in table
    assert "unpatched, eager" in table


SUITE_OF_ONE = Suite((case_of("segformer_b0"),), 0.0, 2, 2, True)
