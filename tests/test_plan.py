"""The index plan: pure, whole, and the same for any number of devices."""

import numpy as np
import pytest

from resnet_lab.data.plan import DRAWS, EvalPlan, TrainPlan, split_validation


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    def fresh(seed: int, epoch: int, batch_size: int = 8) -> tuple[np.ndarray, np.ndarray]:
        plan = TrainPlan(100, batch_size, seed, epoch)
        return plan.order, plan.draws

    order, draws = fresh(seed=1, epoch=2)
    for other_order, other_draws in (fresh(1, 2), fresh(1, 2, batch_size=20)):
        np.testing.assert_array_equal(order, other_order)
        np.testing.assert_array_equal(draws, other_draws)
    for seed, epoch in ((1, 3), (2, 2), (2, 1)):
        other_order, other_draws = fresh(seed, epoch)
        assert (order != other_order).any()
        assert (draws != other_draws).any()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_one_global_batch(world_size: int) -> None:
    one = TrainPlan(103, 12, seed=5, epoch=1)
    ranks = [TrainPlan(103, 12, 5, 1, rank, world_size) for rank in range(world_size)]
    assert {len(plan) for plan in ranks} == {103 // 12}
    for step in range(len(one)):
        shares = [plan.batch(step) for plan in ranks]
        np.testing.assert_array_equal(np.concatenate(shares), one.batch(step))
        draws = [plan.draws[share] for plan, share in zip(ranks, shares, strict=True)]
        np.testing.assert_array_equal(np.concatenate(draws), one.draws[one.batch(step)])


@pytest.mark.parametrize(("n", "batch_size"), [(1, 1), (10, 10), (10, 3), (100, 7), (1000, 128)])
def test_an_epoch_sees_each_image_at_most_once_in_full_batches(n: int, batch_size: int) -> None:
    plan = TrainPlan(n, batch_size, seed=0, epoch=0)
    seen = np.concatenate([plan.batch(step) for step in range(len(plan))])
    assert len(seen) == n // batch_size * batch_size
    assert len(np.unique(seen)) == len(seen)
    assert seen.min() >= 0
    assert seen.max() < n


def test_orders_are_uniform() -> None:
    """Each of 5 images comes first in a fifth of the epochs (chi-square, 4 degrees of freedom)."""
    first = [int(TrainPlan(5, 1, seed=0, epoch=epoch).order[0]) for epoch in range(2000)]
    chi_square = ((np.bincount(first, minlength=5) - 400) ** 2 / 400).sum()
    assert chi_square < 18.47  # exceeded by chance once in 1,000


def test_draws_fill_31_bits_and_columns_differ() -> None:
    draws = TrainPlan(20000, 1, seed=0, epoch=0).draws
    assert draws.shape == (20000, DRAWS)
    assert draws.dtype == np.int32
    assert draws.min() >= 0
    for bit in range(31):
        assert ((draws >> bit) & 1).mean(axis=0) == pytest.approx(0.5, abs=0.02)
    correlation = np.corrcoef(draws.T.astype(float)) - np.eye(DRAWS)
    assert np.abs(correlation).max() < 0.04


def test_impossible_batches_say_what_is_possible() -> None:
    with pytest.raises(ValueError, match="the largest possible is 50"):
        TrainPlan(50, 128, seed=0, epoch=0)
    with pytest.raises(ValueError, match="must be a multiple of 3"):
        TrainPlan(50, 8, seed=0, epoch=0, world_size=3)


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 100])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 128])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_evaluation_counts_every_image_once(n: int, batch_size: int, world_size: int) -> None:
    plans = [EvalPlan(n, batch_size, rank, world_size) for rank in range(world_size)]
    assert len({len(plan) for plan in plans}) == 1
    counted = []
    for plan in plans:
        for step in range(len(plan)):
            images, mask = plan.batch(step)
            assert images.shape == mask.shape == (batch_size,)
            assert images.max() < n
            counted.append(images[mask])
    np.testing.assert_array_equal(np.sort(np.concatenate(counted)), np.arange(n))


LABELS = np.repeat([0, 1, 2, 3], [50, 30, 15, 5])


@pytest.mark.parametrize("val_size", [0.1, 0.5, 1, 3, 99])
def test_the_validation_cut_is_whole_and_in_proportion(val_size: float) -> None:
    labels = np.random.default_rng(0).permutation(LABELS)
    train, val = split_validation(labels, val_size, seed=3)
    wanted = val_size if val_size >= 1 else 100 * val_size
    assert len(val) == wanted
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(100))
    assert (np.diff(train) > 0).all()
    assert (np.diff(val) > 0).all()
    exact = wanted * np.bincount(labels) / 100
    assert (np.abs(np.bincount(labels[val], minlength=4) - exact) < 1).all()


def test_the_validation_cut_follows_its_seed_and_covers_all_images() -> None:
    cuts = [split_validation(LABELS, 20, seed)[1] for seed in range(200)]
    np.testing.assert_array_equal(cuts[7], split_validation(LABELS, 20, seed=7)[1])
    assert len({tuple(cut) for cut in cuts}) == 200
    assert len(np.unique(np.concatenate(cuts))) == 100


def test_no_validation_and_impossible_cuts() -> None:
    train, val = split_validation(LABELS, 0, seed=0)
    assert (len(train), len(val)) == (100, 0)
    for val_size in (100, 0.999, 1000):
        with pytest.raises(ValueError, match="the largest possible is 99"):
            split_validation(LABELS, val_size, seed=0)
    for val_size in (-0.1, 2.5):
        with pytest.raises(ValueError, match="must be a share between 0 and 1"):
            split_validation(LABELS, val_size, seed=0)
