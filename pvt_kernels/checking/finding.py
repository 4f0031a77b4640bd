"""What a check found: one row of what is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

# EXCEEDED is of PyTorch's own functions, which this package's backend sdpa calls: they may err more
# than is allowed to this package's kernels
PASSED, FAILED, EXCEEDED, NOT_RUN = "passed", "failed", "exceeded", "not run"
ERRORS, BEHAVIOUR, MEMORY, TIMING, CRASH = "errors", "behaviour", "memory", "timing", "crash"


@dataclass
class Finding:
    """One thing that was looked at.

    Attributes:
        kind: ERRORS, BEHAVIOUR, MEMORY, TIMING, or CRASH of a whole job.
        what: the op, the behaviour, the layer, or the contender that was timed.
        case: shape and what else tells one from another.
        backend: None for a peer.
        dtype: key of benchmarking.cases.DTYPES.
        status: PASSED, FAILED, EXCEEDED or NOT_RUN.
        detail: the reason, or what came closest to its limit.
        figures: every number, as JSON has them.
    """

    kind: str
    what: str
    case: str
    backend: str | None
    dtype: str | None
    status: str
    detail: str = ""
    figures: dict[str, object] = field(default_factory=dict)


def verdict(holds: bool) -> str:
    return PASSED if holds else FAILED
