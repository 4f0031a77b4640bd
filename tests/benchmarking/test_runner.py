"""What becomes of contenders that are right, wrong, failing and too large."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch

from pvt_kernels.benchmarking import memory, runner, timing, workloads
from pvt_kernels.benchmarking.cases import (
    BACKBONE,
    CONVOLVED,
    CORE,
    FEED_FORWARD,
    FORWARD,
    LAYER,
    MEMORY,
    TRAINING,
    Case,
    Suite,
    suite,
)
from pvt_kernels.benchmarking.contenders import (
    COMPILED,
    EAGER_SRA,
    FEED_FORWARD_PEERS,
    NAIVE_MHA,
    PACKAGE,
    PEERS,
    SDPA,
    Contender,
    contenders,
)
from pvt_kernels.benchmarking.results import (
    ABOVE_BUDGET,
    FAILED,
    NOT_RUN,
    OK,
    WRONG,
    ratio_to_best_peer,
)
from pvt_kernels.benchmarking.shapes import STAGES

SIZE = (64, 96)
SUITE = Suite((), seconds=0.0, rounds=3, backbone_rounds=3, quick=False)
PACKAGE_SDPA = Contender("pvt_kernels[sdpa]", PACKAGE, "sdpa")
FIELD = [NAIVE_MHA, EAGER_SRA, PEERS[1], PACKAGE_SDPA]


def layer_case(stage=1, mode=TRAINING, dtype="fp32"):
    return Case(LAYER, f"stage {stage}", SIZE, mode, dtype, 1, "cpu")


def run(case, field=FIELD, chosen=SUITE):
    found = runner.run_case(case, chosen, field=field)
    return {m.contender: m for m in found}


@pytest.fixture
def no_memory_measurement(monkeypatch):
    monkeypatch.setattr(memory, "peak", lambda case, contender: memory.Peak(1, 1.0))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_layers_are_right_and_timed(stage, dtype, no_memory_measurement):
    for m in run(layer_case(stage, dtype=dtype)).values():
        assert m.status == OK, m.reason
        assert not m.mark, (m.contender, m.over_budget)
        assert len(m.samples) == 3
        assert {"output", "x", "q.weight", "kv.bias"} <= m.errors.keys()
        assert ("sr.weight" in m.errors) == (stage < 4 and m.contender != NAIVE_MHA.name)


def test_naive_attention_is_checked_on_some_queries(no_memory_measurement):
    measurement = run(layer_case())[NAIVE_MHA.name]
    assert measurement.note == "checked on 256 of 384 queries"


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
def test_backbones_are_right_and_timed(mode, no_memory_measurement):
    case = Case(BACKBONE, "pvt_tiny", SIZE, mode, "fp32", 1, "cpu")
    found = run(case)
    for m in found.values():
        assert m.status == OK, m.reason
        assert not m.mark, (m.contender, m.over_budget)
        outputs = {"output 1", "output 2", "output 3", "output 4"}
        assert m.errors.keys() == outputs | ({"x", "parameters"} if case.backward else set())
    assert found[NAIVE_MHA.name].note == "checked at 224x224"


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("form", ["", CONVOLVED])
def test_feed_forward_networks_are_right_and_timed(form, dtype, mode, no_memory_measurement):
    case = Case(FEED_FORWARD, f"stage 2{form}", SIZE, mode, dtype, 1, "cpu")
    found = run(case, [FEED_FORWARD_PEERS[0], Contender("pvt_kernels", PACKAGE)])
    for m in found.values():
        assert m.status == OK, m.reason
        assert not m.mark, (m.contender, m.over_budget)
        assert len(m.samples) == 3 and m.flops == found["eager"].flops
        assert ("dwconv.dwconv.weight" in m.errors) == (bool(form) and case.backward)
    assert ratio_to_best_peer(found["pvt_kernels"], list(found.values()))


def test_of_several_images_small_ones_are_checked():
    case = Case(BACKBONE, "pvt_tiny", (64, 96), FORWARD, "fp32", 2, "cpu")
    inputs, note = workloads.workload(case, real_input=False).check_inputs(EAGER_SRA)
    assert note == "checked at 224x224" and inputs.x.shape == (2, 3, 224, 224)


def test_the_largest_image_follows_from_what_a_step_keeps(no_memory_measurement):
    case = Case(BACKBONE, "pvt_tiny", SIZE, TRAINING, "fp32", 1, "cpu")
    found = run(case, [EAGER_SRA, PEERS[1], Contender("pvt_kernels", PACKAGE)])
    eager, sdpa, own = (m.largest_side for m in found.values())
    assert 0 < eager < sdpa < own
    assert all(side % 32 == 0 for side in (eager, sdpa, own))


def test_all_contenders_share_weights():
    work = workloads.workload(layer_case())
    states = [work.build(contender).state_dict() for contender in FIELD[1:]]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    for state in states[1:]:
        assert all(torch.equal(states[0][name], tensor) for name, tensor in state.items())


def test_contenders_of_the_cpu():
    names = [c.name for c in contenders(torch.device("cpu"), torch.float32)]
    assert names[:4] == ["naive MHA", "eager SRA", "SDPA SRA", "compiled SRA"]
    assert any(name.startswith("pvt_kernels") for name in names)
    # tests have the reference, and the peer SDPA computes what the backend does
    assert not any("reference" in name or "[sdpa]" in name for name in names)


def break_contender(monkeypatch, change):
    build = workloads.build_layer

    def broken(contender, *arguments):
        layer = build(contender, *arguments)
        if contender.kind == SDPA:
            change(layer)
        return layer

    monkeypatch.setattr(workloads, "build_layer", broken)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
@pytest.mark.parametrize(("factor", "mark"), [(1.0002, ABOVE_BUDGET), (2.0, WRONG)])
def test_a_peer_that_errs_is_marked_and_a_peer_still(
    factor, mark, mode, monkeypatch, no_memory_measurement
):
    def scale(layer):
        layer.scale *= factor

    break_contender(monkeypatch, scale)
    found = run(layer_case(mode=mode))
    erring = found[PEERS[1].name]
    assert (erring.status, erring.mark) == (OK, mark)
    assert erring.over_budget.startswith("relative error of ")
    assert erring.peak_bytes == 1 and len(erring.samples) == 3
    assert [m.mark for m in found.values() if m is not erring] == [""] * 3
    # were it the fastest, this package would be compared with it
    erring.samples = [s / 1e3 for s in found["eager SRA"].samples]
    ratio = ratio_to_best_peer(found[PACKAGE_SDPA.name], list(found.values()))
    assert ratio == erring.median / found[PACKAGE_SDPA.name].median


def test_a_wrong_gradient_alone_is_noticed(monkeypatch, no_memory_measurement):
    def change(layer):
        layer.proj.bias.register_hook(lambda grad: grad * 1.001)

    break_contender(monkeypatch, change)
    assert not run(layer_case(mode=FORWARD))[PEERS[1].name].mark
    measurement = run(layer_case())[PEERS[1].name]
    assert measurement.mark and "gradient 'proj.bias'" in measurement.over_budget


def test_the_package_is_held_to_a_multiple_of_the_eager_error(monkeypatch, no_memory_measurement):
    found = run(layer_case())
    eager, own = found[EAGER_SRA.name], found[PACKAGE_SDPA.name]
    for name, budget in own.budgets.items():
        rounding = eager.budgets[name] / (64 + 4)
        factor = 2 if name == "output" else 3
        assert budget == pytest.approx(max(factor * eager.errors[name], rounding)), name
        assert found[PEERS[1].name].budgets[name] == eager.budgets[name]


def test_naive_attention_that_would_take_too_long_is_not_run(monkeypatch, no_memory_measurement):
    monkeypatch.setattr(timing, "LONGEST_S", 0.0)
    found = run(layer_case())
    naive = found[NAIVE_MHA.name]
    assert naive.status == NOT_RUN and naive.reason.startswith("would take ")
    assert naive.samples == [] and naive.peak_bytes is None
    assert all(m.status == OK for m in found.values() if m is not naive)


def test_a_failing_contender_is_reported_with_its_reason(monkeypatch, no_memory_measurement):
    def change(layer):
        layer.core = None

    break_contender(monkeypatch, change)
    measurement = run(layer_case())[PEERS[1].name]
    assert measurement.status == FAILED
    assert measurement.reason == "TypeError: 'NoneType' object is not callable"


@pytest.mark.parametrize("kind", [LAYER, MEMORY])
def test_what_does_not_fit_is_not_run(kind, monkeypatch, no_memory_measurement):
    case = dataclasses.replace(layer_case(), kind=kind)
    needed = workloads.workload(case).needed_bytes(NAIVE_MHA)
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    found = run(case)
    assert found[NAIVE_MHA.name].status == NOT_RUN
    assert found[NAIVE_MHA.name].reason.endswith(" GB needed, 0.0 GB free")
    assert found[NAIVE_MHA.name].samples == []
    assert found[EAGER_SRA.name].status == OK


def test_quick_mode_says_what_it_leaves_out(no_memory_measurement):
    chosen = dataclasses.replace(SUITE, quick=True)
    found = run(layer_case(), [EAGER_SRA, PEERS[2]], chosen)
    assert found[PEERS[2].name].reason == "not in quick mode"
    assert found[EAGER_SRA.name].status == OK


def test_memory_sweep_measures_without_timing():
    case = dataclasses.replace(layer_case(), kind=MEMORY)
    for m in run(case).values():
        assert m.status == OK and m.peak_bytes > 0 and len(m.samples) == 1


@pytest.mark.parametrize("mode", [FORWARD, TRAINING])
def test_the_attention_alone_is_checked_and_timed(mode):
    found = run(dataclasses.replace(layer_case(mode=mode), kind=CORE))
    assert NAIVE_MHA.name not in found and PEERS[2].name not in found
    gradients = {"x", "k", "v"} if mode == TRAINING else set()
    for m in found.values():
        assert m.status == OK and m.gflops > 0 and m.peak_bytes is None
        assert set(m.errors) == {"output", *gradients}


def test_a_peer_is_left_out_where_pytorchs_products_would_take_far_too_long(monkeypatch):
    case = layer_case(mode=FORWARD)
    monkeypatch.setattr(runner, "matmul_gflops", lambda dtype, device: 0.2)
    assert runner.too_slow(case, int(1.3e9)) is None
    reason = "a call would take about 10 s by PyTorch's matrix product, 0.2 GFLOP/s in fp32"
    assert runner.too_slow(case, int(2e9)) == reason
    monkeypatch.setattr(runner, "too_slow", lambda case, flops: reason)
    found = run(case)
    assert {m.reason for name, m in found.items() if m.status == NOT_RUN} >= {reason}
    assert found[PACKAGE_SDPA.name].samples
    assert found["SDPA SRA"].reason == reason and not found["SDPA SRA"].samples


def test_suites():
    quick = suite(True, "cpu").cases
    assert {c.dtype for c in quick} == {"fp32"}
    assert [c.subject for c in quick if c.kind == BACKBONE] == ["pvt_tiny"]
    assert len([c for c in quick if c.kind == LAYER]) == 8
    full = suite(False, "cuda").cases
    assert {c.dtype for c in full} == {"fp32", "bf16", "fp16"}
    assert {c.size for c in full if c.kind == LAYER} == {(800, 1216), (224, 224)}
    assert {c.size for c in full if c.kind == CORE} == {(800, 1216), (224, 224)}
    networks = [c for c in full if c.kind == FEED_FORWARD]
    assert {c.size for c in networks} == {(800, 1216), (224, 224)}
    assert {(c.stage, c.convolved) for c in networks} == {(s, c) for s in STAGES for c in (0, 1)}
    assert set(suite(False, "cpu", kinds=(CORE,)).cases) == {
        c for c in suite(False, "cpu").cases if c.kind == CORE
    }
    chosen = suite(True, "cpu", sizes=((64, 64),), stages=(2,), models=(), batch=2).cases
    assert [(c.kind, c.subject, c.size, c.batch) for c in chosen] == [
        (LAYER, "stage 2", (64, 64), 2)
    ] * 2


def test_left_out_compiles_only_forward_layers():
    compiled = PEERS[2]
    assert compiled.kind == COMPILED
    assert not runner.left_out(layer_case(mode=FORWARD), compiled, 0)
    assert runner.left_out(layer_case(mode=TRAINING), compiled, 0)


def test_what_was_compiled_for_other_instructions_is_not_taken():
    # PyTorch's cache doesn't tell them apart, and its kernels then write beyond their tensors
    def cache(**variables):
        code = (
            "import os, pvt_kernels.benchmarking; print(os.environ.get('TORCHINDUCTOR_CACHE_DIR'))"
        )
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("ATEN_CPU_CAPABILITY", "TORCHINDUCTOR_CACHE_DIR")
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=inherited | variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert cache() == "None"
    held = {cache(ATEN_CPU_CAPABILITY=name) for name in ("avx2", "avx512")}
    assert len(held) == 2 and "None" not in held
    assert cache(ATEN_CPU_CAPABILITY="avx2", TORCHINDUCTOR_CACHE_DIR="/own") == "/own"
