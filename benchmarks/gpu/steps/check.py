"""`python -m pvt_kernels check`, each finding on disk as it comes."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

from pvt_kernels.benchmarking.cases import DTYPES
from pvt_kernels.checking.jobs import CHECKED, Plan, jobs, plan_for
from pvt_kernels.checking.run import run
from pvt_kernels.checking.warm_up import warm_up
from steps.device import BATCH, CUDA, SIZE
from steps.record import record, seconds_left

# after so many seconds a job is given up, which a first compilation takes no more than half of
LONGEST_S = 60.0 if CUDA else 600.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=list(CHECKED), choices=CHECKED)
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--variant", default="", help="of the build that is checked")
    parser.add_argument("--quick", action="store_true", help="of images of 224x224")
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--first", type=int, help="only so many jobs")
    options = parser.parse_args()
    plan = plan_for("cuda", options.quick) if CUDA else Plan("cpu", SIZE, BATCH, timed="fp32")
    plan = replace(
        plan,
        backends=tuple(options.backends),
        dtypes=tuple(options.dtypes),
        timed=None if options.untimed else plan.timed,
    )
    warm_up(plan)
    total = len(jobs(plan))
    for number, (_, findings) in enumerate(run(jobs, plan, longest_s=LONGEST_S), start=1):
        for finding in findings:
            record("finding", variant=options.variant, **_without_kind(asdict(finding)))
        if number == options.first:
            return
        if seconds_left() < 3:
            record("dropped", first=f"job {number + 1} of the check", parts=total - number)
            return


def _without_kind(fields: dict[str, object]) -> dict[str, object]:
    # a record has a kind of its own
    return {"about": fields.pop("kind"), **fields}


if __name__ == "__main__":
    main()
