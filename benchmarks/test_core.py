"""The attention alone: in the full benchmark, every stage of PVT, forward, and both ways."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import CORE as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_core(case, contender, replay):
    measurement = replay(case, contender)
    assert all(error <= measurement.budgets[n] for n, error in measurement.errors.items())
