"""Which implementation of an op runs, and why the others don't."""

from pvt_kernels.backends.base import (
    AttentionInputs,
    Backend,
    FeedForwardInputs,
    Inputs,
    MultiHeadAttentionInputs,
    SpatialReductionInputs,
)
from pvt_kernels.backends.registry import (
    BACKEND_NAMES,
    Decision,
    choose,
    decide,
    explain,
    get,
    surroundings,
    use_backend,
)

__all__ = [
    "BACKEND_NAMES",
    "AttentionInputs",
    "Backend",
    "Decision",
    "FeedForwardInputs",
    "Inputs",
    "MultiHeadAttentionInputs",
    "SpatialReductionInputs",
    "choose",
    "decide",
    "explain",
    "get",
    "surroundings",
    "use_backend",
]
