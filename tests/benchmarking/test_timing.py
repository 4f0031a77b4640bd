"""The order of rounds, and the arithmetic of ratios."""

from typing import ClassVar

import pytest
import torch

from pvt_kernels.benchmarking import timing


def test_every_round_starts_with_the_next_contender():
    ran = []
    measures = {n: lambda n=n: ran.append(n) or 1.0 for n in "abc"}
    samples, _ = timing.interleave(measures, budget_s=0.0, minimum_rounds=4)
    assert "".join(ran) == "abcbcacababc"
    assert samples == {n: [1.0] * 4 for n in "abc"}


def test_rounds_go_on_until_the_budget_is_spent():
    def measure():
        return timing.seconds(lambda: sum(range(20_000)), torch.device("cpu"))

    samples, _ = timing.interleave({"a": measure}, budget_s=0.05, minimum_rounds=1)
    assert len(samples["a"]) > 3


def test_rounds_end_early_where_all_spreads_are_small():
    steady, jumpy = (lambda: 1.0), iter([1.0, 2.0] * 150)
    samples, _ = timing.interleave({"a": steady, "b": steady}, budget_s=9.0, minimum_rounds=5)
    assert {name: len(s) for name, s in samples.items()} == {"a": 5, "b": 5}
    samples, _ = timing.interleave(
        {"a": steady, "b": lambda: next(jumpy)}, budget_s=9.0, minimum_rounds=5
    )
    assert {len(s) for s in samples.values()} == {timing.MOST_ROUNDS}


@pytest.mark.parametrize("rounds", [timing.ROUNDS_FAR_BEHIND, 1])
def test_who_is_far_behind_has_few_rounds(rounds):
    measures = {"a": lambda: 1.0, "b": lambda: 4.9, "c": lambda: 5.1}
    samples, _ = timing.interleave(measures, 0.0, minimum_rounds=7, rounds_far_behind=rounds)
    expected = {"a": 7, "b": 7, "c": rounds}
    assert {name: len(s) for name, s in samples.items()} == expected


def test_an_optional_contender_that_would_take_too_long_is_given_up():
    seconds = timing.LONGEST_S / 5
    measures = {"slow": lambda: 1.1 * seconds, "quick": lambda: 0.9 * seconds}
    measures["peer"] = lambda: 4 * seconds
    samples, given_up = timing.interleave(measures, 0.0, 5, optional=["slow", "quick"])
    assert {name: len(s) for name, s in samples.items()} == {"slow": 0, "quick": 5, "peer": 5}
    assert given_up == {"slow": pytest.approx(5.5 * seconds)}


def test_nothing_to_time():
    assert timing.interleave({}, 1.0, 5) == ({}, {})


def test_seconds_is_the_time_of_the_call():
    import time

    assert 0.02 <= timing.seconds(lambda: time.sleep(0.02), torch.device("cpu")) < 0.5


def test_quartiles():
    assert timing.quartiles([5.0]) == (5.0, 5.0, 5.0)
    assert timing.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


def test_speedup_follows_from_the_medians():
    assert timing.speedup([1.0, 2.0, 9.0], [3.0, 5.0, 100.0]) == 2.5


def test_best_peer_has_the_lowest_median_and_was_timed():
    samples = {"a": [3.0, 3.0, 1.0], "b": [2.0, 2.0, 9.0], "c": [], "other": [0.1]}
    assert timing.best_peer(samples, ["a", "b", "c", "absent"]) == "b"
    assert timing.best_peer(samples, ["c", "absent"]) is None


@pytest.mark.parametrize("index", range(5))
def test_rotation_keeps_everyone(index):
    assert sorted(timing.rotated("abc", index)) == ["a", "b", "c"]


class FakeEvent:
    """Of a GPU whose clock is 5 ms further on at each record."""

    log: ClassVar[list] = []

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.log.append("record")
        self.time = 5.0 * len(self.log)

    def synchronize(self):
        self.log.append("wait")

    def elapsed_time(self, end):
        return end.time - self.time


def test_a_gpus_time_lies_between_two_events(monkeypatch):
    log: ClassVar[list] = []
    monkeypatch.setattr(FakeEvent, "log", log)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("idle"))
    taken = timing.seconds(lambda: log.append("call"), torch.device("cuda"))
    assert log == ["idle", "record", "call", "record", "wait"]
    assert taken == pytest.approx(0.010)


def test_a_ring_writes_the_next_buffers_before_every_call():
    from pvt_kernels.benchmarking.workloads import Inputs, Ring

    inputs = Inputs(torch.randn(4, requires_grad=True), (), [torch.randn(4)])
    ring = Ring(inputs, cache=32)
    first, second, again = ring.next(), ring.next(), ring.next()
    assert first is again and len({i.x.data_ptr() for i in (inputs, first, second)}) == 3
    with torch.no_grad():
        second.x.zero_()
    assert ring.next() is second and torch.equal(second.x, inputs.x)
    assert Ring(inputs, cache=0).next() is inputs


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_gpu_is_the_default_where_there_is_one(there, device, monkeypatch):
    from pvt_kernels.arguments import default_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert default_device() == device
