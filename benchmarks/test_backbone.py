"""Whole backbones, every attention layer swapped for the contender's."""

import pytest
from conftest import clock

from pvt_kernels.benchmarking.cases import BACKBONE as KIND  # noqa: F401


@pytest.mark.benchmark(timer=clock.now)
def test_backbone(case, contender, replay):
    assert replay(case, contender).samples
