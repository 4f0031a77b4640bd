"""Learning rates against values worked out by hand."""

import pytest

from pvt_kernels.systems.training.schedules import Cosine, MultiStep, Poly


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.001),
        (10, 0.001 + 0.999 * 0.2),  # one of five epochs of warm-up
        (49, 0.001 + 0.999 * 0.98),
        (50, 0.01 + 0.99 * 0.9330127),  # (1 + cos(pi / 6)) / 2
        (150, 0.01 + 0.99 * 0.5),
        (300, 0.01),
    ],
)
def test_cosine(step, factor):
    assert Cosine().factor(step, total_steps=300, steps_per_epoch=10) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.001),
        (250, 0.5005),
        (500, 1.0),
        (7999, 1.0),
        (8000, 0.1),
        (10999, 0.1),
        (11000, 0.01),
        (11999, 0.01),
    ],
)
def test_multi_step(step, factor):
    schedule = MultiStep((8, 11))
    assert schedule.factor(step, total_steps=12000, steps_per_epoch=1000) == pytest.approx(factor)


def test_multi_step_without_warm_up_starts_at_the_full_rate():
    assert MultiStep((33,), warmup_steps=0).factor(0, 50, 1) == 1.0


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (40_000, 0.5358867), (79_999, 3.864e-05)])
def test_poly(step, factor):
    value = Poly(0.9).factor(step, total_steps=80_000, steps_per_epoch=1)
    assert value == pytest.approx(factor, rel=1e-3)
