"""Learning-rate schedules: the factor at every optimizer step."""

import itertools
import math

import pytest
import torch

from resnet_lab import schedule


def factors(make, total_steps=100, steps_per_epoch=10, **options):
    """The learning rate (base 1) that each of `total_steps` optimizer steps is taken with."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, total_steps, steps_per_epoch, **options)
    seen = []
    for _ in range(total_steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_multistep_follows_the_paper_in_every_unit():
    # 64k steps divided at 32k and 48k (He et al. 2015, section 4.2), here a thousandth of it.
    expected = [1.0] * 32 + [0.1] * 16 + [0.01] * 16
    for options in (
        {"milestones": [32, 48], "unit": "step"},
        {"milestones": [4, 6], "unit": "epoch"},
        {"milestones": [0.5, 0.75], "unit": "run"},
    ):
        assert factors(schedule.multistep, 64, 8, **options) == pytest.approx(expected)


def test_constant_warm_up_holds_its_factor_then_jumps():
    # ResNet-110: 0.01 for the first 400 steps, then 0.1.
    seen = factors(
        schedule.constant, 10, 5, warmup=4, warmup_from=0.1, warmup_shape="constant", unit="step"
    )
    assert seen == pytest.approx([0.1] * 4 + [1.0] * 6)


def test_linear_warm_up_rises_evenly_and_ends_below_the_top():
    seen = factors(schedule.constant, 10, 5, warmup=0.8, unit="epoch")
    assert seen == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 6)


def test_cosine_starts_at_one_passes_the_middle_and_nears_its_end():
    seen = factors(schedule.cosine, final=0.1)
    assert seen[0] == 1.0
    assert seen[50] == pytest.approx(0.55)
    assert seen[99] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert all(a > b for a, b in itertools.pairwise(seen))


def test_onecycle_rises_to_its_peak_and_falls_to_almost_nothing():
    seen = factors(schedule.onecycle, peak=0.3, start=0.04, final=0.001)
    assert seen[0] == pytest.approx(0.04)
    assert seen.index(max(seen)) == 30
    assert max(seen) == 1.0
    assert 0.001 < seen[-1] < 0.003


@pytest.mark.parametrize("name", ["constant", "multistep", "cosine", "onecycle"])
def test_a_reloaded_schedule_goes_on_where_it_was(name):
    make = getattr(schedule, name)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = make(optimizer, 20, 5)
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    again = torch.optim.SGD([parameter], lr=1.0)
    resumed = make(again, 20, 5)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    for _ in range(10):
        for o, s in ((optimizer, scheduler), (again, resumed)):
            o.step()
            s.step()
        assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
