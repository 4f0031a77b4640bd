"""The attention alone: in the full benchmark, every stage of PVT, forward, and both ways."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import CORE as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_core(case, contender, replay):
    assert replay(case, contender).samples
