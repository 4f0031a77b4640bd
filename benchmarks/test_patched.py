"""Other libraries' models before and after patch()."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import PATCHED as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_patched(case, contender, replay):
    assert replay(case, contender).samples
