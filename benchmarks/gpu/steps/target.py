"""What sanitizers and profilers run: small calls of every op, or a training step of a layer."""

from __future__ import annotations

import argparse

import torch

from pvt_kernels import use_backend
from pvt_kernels.benchmarking.cases import DTYPES, LAYER, TRAINING, Case
from pvt_kernels.benchmarking.contenders import PACKAGE, Contender
from pvt_kernels.benchmarking.workloads import step, workload
from pvt_kernels.checking.cases import odd_cases
from pvt_kernels.checking.error_budget import with_gradients
from pvt_kernels.checking.jobs import reasons_against
from steps.device import BATCH, CUDA, DEVICE, SIZE, synchronize


def small_calls(backend: str, dtypes: list[str]) -> None:
    """Every op on the odd shapes of the check; an error where a result is not finite."""
    count = 0
    for dtype in dtypes:
        for case in odd_cases():
            inputs, gradient = case.sample(DTYPES[dtype], DEVICE)
            if reasons_against((backend,), case.call, inputs)[backend]:
                continue
            with use_backend(backend):
                results = with_gradients(case.call, inputs, gradient)
            synchronize()
            if not all(bool(t.isfinite().all()) for t in results):
                raise RuntimeError(f"{case}, {backend}, {dtype}: a result is not finite")
            count += 1
    if count == 0:
        raise RuntimeError(f"{backend} runs none of the calls")
    print(f"{count} calls of {backend}")


def training_step(backend: str, dtype: str, stage: int) -> None:
    """One step after a warm-up, between the marks that a profiler waits for."""
    case = Case(LAYER, f"stage {stage}", SIZE, TRAINING, dtype, BATCH, DEVICE.type)
    work = workload(case, real_input=False)
    contender = Contender(f"pvt_kernels[{backend}]", PACKAGE, backend)
    module = work.build(contender)
    with contender.context():
        step(module, work.inputs)
        work.clear(module)
        synchronize()
        if CUDA:
            torch.cuda.profiler.start()
        step(module, work.inputs)
        synchronize()
        if CUDA:
            torch.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=DTYPES)
    parser.add_argument("--small", action="store_true", help="small calls instead of a step")
    parser.add_argument("--stage", type=int, default=1)
    options = parser.parse_args()
    if options.small:
        small_calls(options.backend, options.dtypes)
    else:
        training_step(options.backend, options.dtypes[0], options.stage)


if __name__ == "__main__":
    main()
