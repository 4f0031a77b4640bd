"""How many random cases a fuzz has. A case is its seed, which is in the name of its test."""

import os

import pytest

CASES = int(os.environ.get("PVT_KERNELS_FUZZ_CASES", 30))
FIRST_SEED = int(os.environ.get("PVT_KERNELS_FUZZ_SEED", 0))

# a test of one case, given its seed: @fuzzed above `def test_...(seed)`
fuzzed = pytest.mark.parametrize(
    "seed", range(FIRST_SEED, FIRST_SEED + CASES), ids=lambda seed: f"seed{seed}"
)
