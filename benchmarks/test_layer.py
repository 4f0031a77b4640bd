"""One attention layer at a time: every stage of PVT, forward, and forward + backward."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import LAYER as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_layer(case, contender, replay):
    assert replay(case, contender).samples
