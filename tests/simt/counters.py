"""What the kernels may cost, held against what the stand-in for a GPU counted."""

from __future__ import annotations

from dataclasses import dataclass

from .device import Device


@dataclass(frozen=True)
class Bytes:
    """Of global memory, for one kernel.

    Attributes:
        load, store: what has to move at least: every operand and every result once.
        again: loads of what other blocks or lanes load too, and the caches hold.
    """

    load: int
    store: int
    again: int = 0


def check_bytes(device: Device, *kernels: Bytes) -> None:
    """The last call's launches move at most a tenth more than they have to."""
    assert len(device.counters["loaded"]) == len(kernels)
    for i, bytes_ in enumerate(kernels):
        loaded, stored = device.counters["loaded"][i], device.counters["stored"][i]
        assert bytes_.load <= loaded - bytes_.again <= 1.1 * bytes_.load, f"launch {i}"
        assert bytes_.store <= stored <= 1.1 * bytes_.store, f"launch {i}"


def check_bank_conflicts(device: Device) -> None:
    """ldmatrix has none; no other access of a warp waits for a bank more than twice."""
    assert device.counters["matrix_conflicts"] == 0
    assert device.counters["shared_accesses"] > 0
    assert device.counters["most_bank_ways"] <= 2
