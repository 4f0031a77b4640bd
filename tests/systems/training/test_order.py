"""The order of data: a function of the seed alone, however it is shared and resumed."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from pvt_kernels import systems
from pvt_kernels.systems.training.order import Seeded, train_order

RECIPE = replace(
    systems.load("classification").recipes[0],
    batch_size=12,
    micro_batch=12,
    epochs=3,
    repeats=1,
)
SAMPLES = 40


def steps(recipe, world=1, start=0, seed=0):
    """The pieces of each step, over all processes."""
    orders = [train_order(recipe, SAMPLES, rank, world, start, seed) for rank in range(world)]
    pieces = [iter(order) for order in orders]
    return [
        [next(own) for own, order in zip(pieces, orders, strict=True) for _ in order.own]
        for _ in orders[0].steps
    ]


def test_an_epoch_has_no_image_twice_and_epochs_differ():
    order = steps(RECIPE)
    assert len(order) == 3 * 3
    epochs = [
        [index for step in order[3 * e : 3 * e + 3] for piece in step for index, _ in piece]
        for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch)) == 36
    assert epochs[0] != epochs[1] != epochs[2]
    seeds = [seed for step in order for piece in step for _, seed in piece]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize(("world", "micro_batch"), [(1, 3), (2, 3), (4, 3), (4, 2), (2, 2), (2, 5)])
def test_steps_are_the_same_on_any_number_of_processes(world, micro_batch):
    whole = [sorted(step[0]) for step in steps(RECIPE)]
    shared = steps(replace(RECIPE, micro_batch=micro_batch), world)
    assert [sorted(key for piece in step for key in piece) for step in shared] == whole
    assert max(len(piece) for step in shared for piece in step) <= micro_batch


def test_pieces_are_the_same_accumulated_or_in_parallel():
    assert steps(replace(RECIPE, micro_batch=3)) == steps(replace(RECIPE, micro_batch=3), world=4)


@pytest.mark.parametrize("start", [1, 3, 7])
def test_a_resumed_order_is_the_rest(start):
    assert steps(RECIPE, start=start) == steps(RECIPE)[start:]


def test_copies_of_an_image_are_augmented_apart_in_different_pieces():
    recipe = replace(RECIPE, repeats=3, micro_batch=4)
    for step in steps(recipe):
        pieces = [[index for index, _ in piece] for piece in step]
        assert all(len(set(piece)) == 4 for piece in pieces)
        assert set(pieces[0]) == set(pieces[1]) == set(pieces[2])


def test_the_seed_changes_the_order():
    assert steps(RECIPE, seed=1) != steps(RECIPE, seed=0)


@pytest.mark.parametrize(
    ("batch", "world", "message"),
    [
        (41, 1, r"batch_size: given 41, but the dataset has 40 samples"),
        (12, 5, r"batch_size: given 12, accepted multiples of 5 processes"),
    ],
)
def test_batches_that_do_not_fit_are_errors(batch, world, message):
    with pytest.raises(ValueError, match=message):
        train_order(replace(RECIPE, batch_size=batch), SAMPLES, 0, world, 0, 0)


class Random:
    classes = ()

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_sample_depends_on_its_seed_and_leaves_the_generators_alone():
    dataset = Seeded(Random())
    states = random.getstate(), torch.get_rng_state()
    first = dataset[0, 5]
    assert dataset[0, 6] != first
    assert dataset[0, 5] == first
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])
