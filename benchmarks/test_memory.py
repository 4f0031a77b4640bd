"""Peak memory of the first layer's training step, against the resolution."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import MEMORY as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_memory(case, contender, replay):
    # the time is that of the one call whose memory was measured, in a fresh process
    assert replay(case, contender).peak_bytes > 0
