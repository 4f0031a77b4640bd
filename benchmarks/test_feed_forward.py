"""The feed-forward network of every stage of PVT and PVTv2: only in the full form."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import FEED_FORWARD as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_feed_forward(case, contender, replay):
    assert replay(case, contender).samples
