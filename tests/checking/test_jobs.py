"""What a check looks at, that it sees what is wrong, and that one job's end is not the others'."""

import os
import time
from dataclasses import replace

import pytest
import torch

from pvt_kernels.benchmarking.shapes import LayerShape
from pvt_kernels.checking import behaviours, jobs
from pvt_kernels.checking.cases import attention_case, layer_case, odd_cases, stage_cases
from pvt_kernels.checking.finding import (
    CRASH,
    ERRORS,
    EXCEEDED,
    FAILED,
    NOT_RUN,
    PASSED,
    TIMING,
    Finding,
)
from pvt_kernels.checking.jobs import Job, Plan, check_behaviour, check_errors, check_time, plan_for
from pvt_kernels.checking.memory import nan_filled
from pvt_kernels.checking.report import passed, summary
from pvt_kernels.checking.run import run

TINY = Plan("cpu", (64, 64), 1, backends=("cpu", "cuda"), timed="fp32")
CPU = torch.device("cpu")


def statuses(findings):
    return {f.backend: f.status for f in findings}


def test_every_op_is_checked_in_every_dtype_on_odd_shapes_and_all_stages():
    plan = plan_for("cpu", quick=True)
    labels = [job.label for job in jobs.jobs(plan)]
    assert len(set(labels)) == len(labels)
    for dtype in ("fp16", "bf16", "fp32"):
        ops = ("attention", "multi_head_attention", "spatial_reduction", "SRAttention")
        for op in (*ops, "feed_forward"):
            assert sum(x.startswith(f"{op} B") and x.endswith(dtype) for x in labels) >= 7
        for shape in ("N 129, M 65, 1 x 64", "N 70, M 1,", "3 x 40", "B 0", "strided", "expanded"):
            assert any(shape in x and x.endswith(dtype) for x in labels), shape
    assert sum("time of stage" in x for x in labels) == 8
    whole = plan_for("cpu", quick=False)
    assert whole.size == (800, 1216)
    assert any("N 60800, M 950" in job.label for job in jobs.jobs(whole))


@pytest.mark.parametrize("case", [*odd_cases()[::4], *stage_cases((64, 64), 1)], ids=str)
def test_this_packages_kernels_pass(case):
    findings = check_errors(TINY, case, "fp32")
    assert statuses(findings) == {"cpu": PASSED, "cuda": NOT_RUN}
    assert "cuda" not in findings[1].detail or "not an NVIDIA GPU" in findings[1].detail


class Unwritten(torch.autograd.Function):
    """Attention whose last query nobody writes."""

    @staticmethod
    def forward(ctx, q, k, v):
        o = torch.empty_like(q)
        o[:, :-1] = attention_case(1, 1, 1, 1, 8, "dense").oracle(q, k, v)[:, :-1]
        return o

    @staticmethod
    def backward(ctx, grad):
        return grad, grad, grad


def test_memory_that_is_not_written_shows():
    case = replace(attention_case(1, 9, 9, 1, 8, "dense"), call=Unwritten.apply)
    (finding,) = check_errors(replace(TINY, backends=("sdpa",)), case, "fp32")
    assert finding.status == FAILED
    assert finding.figures["errors"]["o"][0] != finding.figures["errors"]["o"][0]  # NaN


def test_memory_reads_as_nan_only_within():
    with nan_filled():
        assert torch.empty(9).isnan().all()
        assert torch.empty(8, dtype=torch.uint8).view(torch.bfloat16).isnan().all()
        assert torch.ones(3).new_empty(5).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_error_of_one_backend_is_not_the_others():
    def call(q, k, v):
        if jobs.decide(jobs.explain(reference.call, q, k, v)[0].inputs).backend == "cpu":
            raise RuntimeError("no such kernel")
        return reference.call(q, k, v)

    reference = attention_case(1, 9, 9, 1, 8, "dense")
    case = replace(reference, call=call)
    findings = check_errors(replace(TINY, backends=("cpu", "sdpa")), case, "fp32")
    assert statuses(findings) == {"cpu": FAILED, "sdpa": PASSED}
    assert "no such kernel" in findings[0].detail


class OneTenthOff(torch.autograd.Function):
    """Attention with gradients of other numbers."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return attention_case(1, 1, 1, 1, 8, "dense").definition(q, k, v)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
            o = attention_case(1, 1, 1, 1, 8, "dense").definition(*inputs)
        return tuple(1.1 * g for g in torch.autograd.grad(o, inputs, grad))


def test_pytorchs_own_functions_may_exceed_the_budget_of_kernels_but_not_be_wrong():
    plan = replace(TINY, backends=("cpu", "sdpa"))
    case = replace(attention_case(1, 9, 9, 1, 8, "dense"), call=OneTenthOff.apply)
    findings = check_errors(plan, case, "fp32")
    assert statuses(findings) == {"cpu": FAILED, "sdpa": EXCEEDED}
    assert passed(findings[1:]) and not passed(findings)
    assert summary(findings) == "1 failed, 1 exceeded"
    case = replace(case, call=Unwritten.apply)
    assert statuses(check_errors(plan, case, "fp32")) == {"cpu": FAILED, "sdpa": FAILED}


def test_a_layer_gives_the_same_bits():
    shape = LayerShape(32, 1, 4, 9, 13, 2)
    (finding,) = check_behaviour(TINY, "cpu", shape, "fp32", "same bits", behaviours.same_bits)
    assert finding.status == PASSED


def test_a_backend_that_cannot_run_is_listed_with_its_reasons():
    shape = LayerShape(32, 1, 4, 9, 13, 2)
    (finding,) = check_behaviour(TINY, "cuda", shape, "fp32", "same bits", behaviours.same_bits)
    assert finding.status == NOT_RUN
    assert "not an NVIDIA GPU" in finding.detail


def test_other_bits_show():
    turns = iter(range(9))
    assert not behaviours.same_bits(lambda: [torch.tensor([float(next(turns) == 3)])])
    # NaN where nothing was written
    assert not behaviours.same_bits(lambda: [torch.empty(1).fill_(0) + torch.empty(1) * 0])


def test_layers_are_timed_beside_their_peers():
    findings = check_time(TINY, 4, "forward")
    assert {f.kind for f in findings} == {TIMING}
    found = {f.what: f for f in findings}
    assert {"eager SRA", "SDPA SRA", "compiled SRA", "pvt_kernels"} <= found.keys()
    own = found["pvt_kernels"]
    assert own.status == PASSED and own.figures["ratio"] > 0
    assert len(own.figures["seconds"]) >= 5
    assert found["SDPA SRA"].figures["ratio"] is None


def test_layers_without_a_reduction_take_any_backend():
    case = layer_case(1, 6, 7, 96, 3, 1)
    assert jobs.reasons_against(("cpu", "sdpa"), case.call, case.inputs(CPU)) == {
        "cpu": [],
        "sdpa": [],
    }


def ending_jobs(names):
    """Jobs that end in every way."""

    def job(name):
        def work():
            if name == "raises":
                raise ValueError("no good")
            if name == "dies":
                os._exit(3)
            if name == "hangs":
                time.sleep(600)
            return [Finding(ERRORS, name, "", None, None, PASSED)]

        return Job(name, work)

    return [job(name) for name in names]


def test_whatever_becomes_of_a_job_the_others_run():
    names = ("good", "raises", "dies", "good too", "hangs", "last")
    begun = []
    found = list(run(ending_jobs, names, lambda number, job: begun.append(job.label), longest_s=2))
    assert [job.label for job, _ in found] == begun == list(names)
    status = {job.label: (f.kind, f.status, f.detail) for job, (f,) in found}
    assert status == {
        "good": (ERRORS, PASSED, ""),
        "raises": (CRASH, FAILED, "ValueError: no good"),
        "dies": (CRASH, FAILED, "the process ended with status 3"),
        "good too": (ERRORS, PASSED, ""),
        "hangs": (CRASH, FAILED, "no answer within 2 s"),
        "last": (ERRORS, PASSED, ""),
    }
