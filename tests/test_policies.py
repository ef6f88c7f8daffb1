"""Augmentation of whole batches against torchvision's of one image, and the draws behind it."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from lab import ROOT, SMALL_NET, choices, composed, read_csv, slow_except, train_here, weights
from pretend_cuda import World
from test_datamodule import make_folder
from torch import Tensor
from torchvision.transforms.v2 import (
    AutoAugment,
    AutoAugmentPolicy,
    CutMix,
    MixUp,
    RandAugment,
    TrivialAugmentWide,
)
from torchvision.transforms.v2 import functional as F

from resnet_lab.classifier import Classifier, binary_cross_entropy, cross_entropy
from resnet_lab.config.check import check
from resnet_lab.config.errors import UserError
from resnet_lab.data import ops, plan, policies
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.data.plan import TrainPlan
from resnet_lab.data.policies import Augment, Augmentation
from resnet_lab.data.sources import Digits, ImageFolder
from resnet_lab.run.build import balanced

SPACES = {  # torchvision's class: its bins, our space, our most bits
    RandAugment: (31, policies.auto_space, 4),
    TrivialAugmentWide: (31, policies.wide_space, 6),
    AutoAugment: (10, policies.auto_space, 4),
}


def pictures(n: int, height: int, width: int) -> Tensor:
    """uint8 [n, h, w, 3], smooth and noisy, one of them of a single colour."""
    random = torch.Generator().manual_seed(height)
    coarse = torch.rand(n, 3, 4, 4, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    noise = 0.1 * torch.randn(n, 3, height, width, generator=random)
    images = (
        ((smooth + noise).clamp(0, 1) * 200 + 20).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    )
    images[-1] = torch.tensor([200, 30, 90], dtype=torch.uint8)
    return images


def one_by_one(images: Tensor, change: Any) -> Tensor:
    """What torchvision makes of each image [h, w, 3]."""
    changed = [change(image.permute(2, 0, 1), i) for i, image in enumerate(images)]
    return torch.stack(changed).permute(0, 2, 3, 1)


def of_torchvision(space: Any, name: str, magnitude: float) -> Any:
    own = space()
    return lambda image, _: own._apply_image_or_video_transform(
        image, name, magnitude, interpolation=own.interpolation, fill={}
    )


# ---------------------------------------------------------------- operations


@pytest.mark.parametrize("space", SPACES)
def test_every_operation_is_torchvisions_to_the_bit(space):
    bins, _, _ = SPACES[space]
    for height, width in ((32, 32), (21, 40)):
        images = pictures(5, height, width)
        for name, (of_bin, signed) in space._AUGMENTATION_SPACE.items():
            found = of_bin(bins, height, width)
            values = [0.0] if found is None else [*found[:: bins // 5].tolist(), float(found[-1])]
            for value in values:
                for magnitude in {value, -value} if signed else {value}:
                    op = torch.full((5,), ops.NUMBER[name])
                    own = ops.apply(images, op, torch.full((5,), magnitude, dtype=torch.float64))
                    theirs = one_by_one(images, of_torchvision(space, name, magnitude))
                    assert torch.equal(own, theirs), (name, magnitude)


def test_images_of_a_batch_do_not_know_of_each_other():
    images = pictures(len(ops.OPS), 32, 32)
    every = torch.arange(len(ops.OPS))
    magnitudes = torch.full((len(every),), 0.4, dtype=torch.float64)
    magnitudes[3:6], magnitudes[ops.NUMBER["Posterize"]] = 7.3, 3
    together = ops.apply(images, every, magnitudes)
    alone = [ops.apply(*(t[i : i + 1] for t in (images, every, magnitudes)))[0] for i in every]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(together[0], images[0])
    assert not any(torch.equal(a, b) for a, b in zip(together[1:-1], images[1:-1], strict=True))


def test_where_all_images_go_the_same_way_nothing_waits_and_the_same_comes_out():
    images, op = pictures(60, 32, 32), torch.arange(60) % len(ops.OPS)
    magnitudes = torch.linspace(0.0, 0.9, 60, dtype=torch.float64)
    expected = ops.apply(images, op, magnitudes)
    with World() as world:
        given = [t.to("cuda:0") for t in (images, op, magnitudes)]
        world.counting = True
        found = ops.apply(*given)
        world.counting = False
        assert not world.waits
        assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("by", [-0.5, -0.21, 0.0, 0.1, 0.5])
def test_hue_gray_and_blur_are_torchvisions_within_a_level(by):
    images = pictures(4, 33, 33)
    hue = ops.shift_hue(images, torch.full((4,), by))
    theirs = one_by_one(images, lambda image, _: F.adjust_hue(image, by))
    assert int((hue.int() - theirs.int()).abs().max()) <= 1
    assert (hue != theirs).float().mean() < 0.01
    assert (hue == images).all() == (by == 0.0)
    gray = one_by_one(images, lambda image, _: F.rgb_to_grayscale(image, 3))
    assert torch.equal(ops.grayscale(images), gray)
    sigma = torch.linspace(0.3, 2.0, 4)
    blurred = ops.blur(images, sigma, 5)
    theirs = one_by_one(images, lambda image, i: F.gaussian_blur(image, [5, 5], [float(sigma[i])]))
    assert int((blurred.int() - theirs.int()).abs().max()) <= 1
    assert not torch.equal(blurred, images)


# ---------------------------------------------------------------- policies


@pytest.mark.parametrize("space", SPACES)
def test_strengths_are_torchvisions(space):
    bins, own_space, bits = SPACES[space]
    table, signed = policies.magnitudes(own_space(48), bins, bits)
    for name, (of_bin, is_signed) in space._AUGMENTATION_SPACE.items():
        theirs = of_bin(bins, 48, 48)
        theirs = torch.zeros(bins) if theirs is None else theirs
        assert table[ops.NUMBER[name]].tolist() == theirs.double().tolist(), name
        assert bool(signed[ops.NUMBER[name]]) == is_signed, name
    if space is not AutoAugment:
        assert set(policies.CHOICES) == set(space._AUGMENTATION_SPACE)


@pytest.mark.parametrize(
    ("pairs", "name"),
    [
        (policies.CIFAR10, AutoAugmentPolicy.CIFAR10),
        (policies.IMAGENET, AutoAugmentPolicy.IMAGENET),
    ],
)
def test_autoaugments_pairs_are_the_papers(pairs, name):
    theirs = [
        [(op, round(10 * p), magnitude or 0) for op, p, magnitude in pair]
        for pair in AutoAugment(name)._policies
    ]
    numbers = policies.Auto(32, pairs).tables[2].tolist()
    assert [[(ops.OPS[op], p, m) for op, p, m in pair] for pair in numbers] == theirs


def rounds(policy: Any, n: int = 40_000) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    draws = torch.randint(2**31, (n, policy.columns), generator=random).int()
    found: list[tuple[Tensor, Tensor]] = policy.rounds(draws, policy.tables)
    return found


def test_trivial_takes_each_operation_and_strength_as_often():
    ((op, magnitude),) = rounds(policies.Trivial(32))
    shares = torch.bincount(op, minlength=len(ops.OPS)) / len(op)
    expected = torch.tensor([0.0 if name == "Invert" else 1 / 14 for name in ops.OPS])
    assert float((shares - expected).abs().max()) < 0.006
    angles = magnitude[op == ops.NUMBER["Rotate"]]
    assert len(angles.unique()) == 61  # 30 to either side, and 0
    assert abs(float((angles > 0).float().mean()) - 30 / 62) < 0.03


def test_rand_takes_its_strength_and_either_sign():
    for op, magnitude in rounds(policies.Rand(32, 2, 9)):
        shears = magnitude[op == ops.NUMBER["ShearX"]]
        assert sorted({round(float(m), 6) for m in shears}) == [-0.09, 0.09]
        assert abs(float((shears > 0).float().mean()) - 0.5) < 0.05
    first, second = rounds(policies.Rand(32, 2, 9))
    assert abs(float((first[0] == second[0]).float().mean()) - 1 / 14) < 0.01


def test_autoaugment_leaves_out_what_its_probabilities_say():
    (first, _), _ = rounds(policies.Auto(32, "Invert 3 0 Rotate 0 5\nEqualize 10 0 Rotate 1 5"))
    shares = torch.bincount(first, minlength=len(ops.OPS)) / len(first)
    assert abs(float(shares[ops.NUMBER["Invert"]]) - 0.15) < 0.01
    assert abs(float(shares[ops.NUMBER["Equalize"]]) - 0.5) < 0.01
    assert abs(float(shares[0]) - 0.35) < 0.01


def test_jitter_is_torchvisions_in_a_row():
    images = pictures(3, 32, 32)
    augmentation = Augmentation(Augment(jitter=[0.4, 0.5, 0.6, 0.1]), 32)
    share = torch.tensor([[0.0, 0.25, 0.5, 0.75], [0.9, 0.1, 0.3, 0.0], [0.5, 0.5, 0.5, 0.5]])
    draws = torch.zeros(3, plan.DRAWS + 4, dtype=torch.int32)
    draws[:, plan.DRAWS :] = (share.double() * 2**31).int()

    def change(image: Tensor, i: int) -> Tensor:
        by = [float(s) for s in share[i]]
        image = F.adjust_brightness(image, 0.6 + 0.8 * by[0])
        image = F.adjust_contrast(image, 0.5 + 1.0 * by[1])
        image = F.adjust_saturation(image, 0.4 + 1.2 * by[2])
        return F.adjust_hue(image, -0.1 + 0.2 * by[3])

    own = augmentation.pixels(images, draws).int()
    assert int((own - one_by_one(images, change).int()).abs().max()) <= 1


def test_an_erased_rectangle_has_its_area_and_the_mean_colour():
    n, side = 400, 32
    augmentation = Augmentation(Augment(erasing=0.5, erasing_area=[0.1, 0.4]), side)
    random = torch.Generator().manual_seed(1)
    draws = torch.randint(2**31, (n, plan.DRAWS + 5), generator=random).int()
    erased = augmentation.erase(torch.ones(n, 3, side, side), draws)[:, 0] == 0
    some = erased.flatten(1).any(1)
    assert 0.4 < float(some.float().mean()) < 0.6
    shares = erased[some].float().mean((1, 2))
    assert 0.08 < float(shares.min()) < 0.13
    assert 0.35 < float(shares.max()) < 0.42
    rows, columns = erased[some].any(2).sum(1), erased[some].any(1).sum(1)
    assert torch.equal(rows * columns, erased[some].sum((1, 2)))  # a rectangle
    ratios = rows / columns
    assert float(ratios.max()) <= 3.6
    assert float(ratios.max()) > 2
    assert float(ratios.min()) < 0.5


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_is_torchvisions(name):
    theirs = {"mixup": MixUp, "cutmix": CutMix}[name](num_classes=10)
    images = torch.rand(6, 3, 16, 20)
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    around = torch.arange(-1, 6)  # the partner of an image is the one before
    augmentation = Augmentation(Augment(**{name: 1.0}), 16)
    for share in (0.0, 0.3, 0.77, 1 - 2**-20):
        draws = torch.zeros(7, plan.DRAWS + plan.MIXING, dtype=torch.int32)
        draws[:, plan.DRAWS + plan.MIXUP] = draws[:, plan.DRAWS + plan.CUTMIX] = int(share * 2**31)
        row, column = 16 * 5 + 3, 20 * 7 + 12
        draws[:, plan.DRAWS + plan.ROW], draws[:, plan.DRAWS + plan.COLUMN] = row, column
        pairs = torch.stack((labels, labels[around[:-1]]), 1)
        mixed, targets = augmentation.mix(images[around], pairs, draws, 10)
        if name == "mixup":
            params: dict[str, Any] = {"lam": share}
        else:
            half_h, half_w = (int(0.5 * (1 - share) ** 0.5 * n) for n in (16, 20))
            top, bottom = max(3 - half_h, 0), min(3 + half_h, 16)
            left, right = max(12 - half_w, 0), min(12 + half_w, 20)
            kept = 1 - (right - left) * (bottom - top) / (16 * 20)
            params = {"box": (left, top, right, bottom), "lam_adjusted": kept}
        params |= {"labels": labels, "batch_size": 6}
        torch.testing.assert_close(mixed, theirs.transform(images.clone(), params))
        torch.testing.assert_close(targets, theirs.transform(labels, params).float())


# ---------------------------------------------------------------- the plan


def test_what_is_new_takes_nothing_from_what_older_runs_drew():
    old = TrainPlan(50, 10, seed=3, epoch=2)
    new = TrainPlan(50, 10, seed=3, epoch=2, streams=((plan.POLICY, 3),), mixing=(1.0, 0.0))
    assert np.array_equal(old.order, new.order)
    assert np.array_equal(old.draws, new.draws[:, : plan.DRAWS])
    assert np.array_equal(old.batch(1), new.visits(1).images[1:])
    assert new.visits(1).draws.shape == (11, plan.DRAWS + 3 + plan.MIXING)
    more = TrainPlan(50, 10, 3, 2, streams=((plan.POLICY, 3), (plan.ERASING, 5)))
    assert np.array_equal(new.draws, more.draws[:, : plan.DRAWS + 3])


def test_shares_of_mixing_follow_the_beta_distribution():
    own = TrainPlan(40_000, 2, 0, 0, mixing=(0.2, 1.0))._mixing / 2.0**31
    mixup, cutmix = own[:, plan.MIXUP], own[:, plan.CUTMIX]
    assert abs(mixup.mean() - 0.5) < 0.01
    assert abs(mixup.var() - 1 / (4 * (2 * 0.2 + 1))) < 0.005
    assert abs(cutmix.var() - 1 / 12) < 0.005
    assert np.abs(own[:, [plan.WHETHER, plan.WHICH, plan.ROW]].mean(0) - 0.5).max() < 0.01


def test_repeats_fill_a_batch_with_images_augmented_anew():
    own = TrainPlan(48, 12, 0, 1, repeats=3)
    for step in range(len(own)):
        images, draws = own.visits(step)
        found, counts = np.unique(images, return_counts=True)
        assert len(found) == 4
        assert (counts == 3).all()
        assert len(np.unique(draws, axis=0)) == 12
    every = np.concatenate([own.batch(step) for step in range(len(own))])
    assert len(np.unique(every)) == 16
    first = own.visits(0)
    assert np.array_equal(first.draws[0], own.draws[first.images[0]])


def test_a_balanced_epoch_sees_every_class_as_often_and_every_image_of_a_small_one():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    own = TrainPlan(100, 10, 0, 4, labels=labels)
    images = np.concatenate([own.batch(step) for step in range(10)])
    assert sorted(np.bincount(labels[images])) == [33, 33, 34]
    assert set(range(80, 100)) <= set(images)
    assert np.bincount(images, minlength=100)[:80].max() == 1
    assert len(np.unique(np.concatenate([own.visits(s).draws for s in range(10)]), axis=0)) == 100
    other = TrainPlan(100, 10, 0, 5, labels=labels)
    assert not np.array_equal(images[:10], other.batch(0))


EVERYTHING = {
    **{"policy": "trivial", "jitter": [0.4, 0.4, 0.4, 0.1], "grayscale": 0.2, "blur": 0.5},
    **{"erasing": 0.5, "mixup": 0.2, "cutmix": 1.0},
}


@pytest.mark.parametrize(
    "options",
    [
        {"augment": EVERYTHING},
        {"augment": {**EVERYTHING, "policy": "rand", "repeats": 2}},
        {"augment": {"policy": "auto_cifar10", "mixup": 1.0}, "balance": True},
        {"augment": {"policy": "auto_imagenet"}, "resize": [[0, 24], [1, 40]], "image_size": 40},
    ],
)
def test_two_devices_and_streams_make_the_batches_of_one_from_memory(tmp_path, options):
    root = make_folder(tmp_path / "photos", [(32, 32)] * 9, splits="train")
    for i in (7, 8):
        (root / "train" / "dark" / f"0{i}.png").unlink()  # an uneven folder

    def batches(rank: int, devices: int, limit: float = 4.0) -> list[list[Tensor]]:
        data = ImageDataModule(
            source=ImageFolder(str(root), str(tmp_path / "cache")),
            **{"image_size": 32, **options},
            **{"batch_size": 8, "val_size": 0, "test_size": 0.1, "memory_limit": limit},
        )
        data.setup("fit")
        data._ranks = lambda: {"rank": rank, "world_size": devices}  # type: ignore[method-assign]
        return [list(data.prepare(batch)) for batch in data.train_dataloader()]

    one = batches(0, 1)
    assert len(one) >= 1
    halves = zip(batches(0, 2), batches(1, 2), strict=True)
    for whole, two in zip(one, halves, strict=True):
        for i in (0, 1):
            assert torch.equal(whole[i], torch.cat([half[i] for half in two]))
    if "resize" in options:
        assert one[0][0].shape[-1] == 24
        return  # where the images of a file are resized once, not twice
    for whole, streamed in zip(one, batches(0, 1, limit=0.0), strict=True):
        assert torch.equal(whole[0], streamed[0])
        assert torch.equal(whole[1], streamed[1])


def test_photographs_take_the_same_path_after_decoding(tmp_path):
    root = make_folder(tmp_path / "photos", [(90, 80), (100, 85), (72, 95), (80, 80)])

    def batches(rank: int, devices: int, **more: Any) -> list[list[Tensor]]:
        data = ImageDataModule(
            source=ImageFolder(str(root), str(tmp_path / "cache")),
            **{"image_size": 80, "batch_size": 4, "val_size": 0, "workers": 0},
            **{"resize": [[0, 72]], **more},
        )
        data.setup("fit")
        assert data.photographs
        data._ranks = lambda: {"rank": rank, "world_size": devices}  # type: ignore[method-assign]
        return [list(data.prepare(batch)) for batch in data.train_dataloader()]

    everything = {"augment": EVERYTHING}
    for whole, *two in zip(
        batches(0, 1, **everything),
        batches(0, 2, **everything),
        batches(1, 2, **everything),
        strict=True,
    ):
        assert whole[0].shape == (4, 3, 72, 72)
        for i in (0, 1):
            assert torch.equal(whole[i], torch.cat([half[i] for half in two]))
    plain, changed = batches(0, 1), batches(0, 1, augment={"policy": "trivial"})
    apart = [float((a[0] != b[0]).float().mean()) for a, b in zip(plain, changed, strict=True)]
    assert all(0.1 < share < 1 for share in apart)


# ---------------------------------------------------------------- runs

TINY = (*SMALL_NET, "data.train_size=96", "data.val_size=48", "data.batch_size=16")
ALL = (
    "augment=[rand,mixup_cutmix,erasing,color]",
    "data.augment.blur=0.5",
    "classifier.label_smoothing=0.1",
)


@pytest.mark.parametrize(
    "overrides",
    [
        (*ALL, "classifier.loss=bce", "trainer.precision=bf16-mixed"),
        pytest.param(
            (*ALL, "data.balance=true", "classifier.class_weights=balanced"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("augment=auto_cifar10", "data.augment.repeats=2", "trainer.precision=bf16-mixed"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("augment=auto_imagenet", "data.resize=[[0,16],[1,24],[2,32]]"), marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, overrides):
    options = (*TINY, *overrides, "trainer.max_epochs=3", "callbacks=[checkpoints,epoch_log]")
    for name, more in (
        ("whole", options),
        ("paused", (*options, "callbacks.last.pause_after=1")),
        ("again", ("resume=paused", "callbacks.last.pause_after=null")),
    ):
        folder = () if name == "again" else (f"hydra.run.dir={name}",)
        done = train_here(tmp_path, *more, *folder)
        assert done.returncode == 0, done.stderr
    rows = [read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "paused")]
    figures = ("train/loss", "train/acc", "val/loss", "val/acc")
    assert [[row[f] for f in figures] for row in rows[0]] == [
        [row[f] for f in figures] for row in rows[1]
    ]
    assert len(rows[0]) == 3
    one, other = (weights(tmp_path / name) for name in ("whole", "paused"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_accuracy_asks_for_the_larger_share():
    class Fixed(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images

    classifier = Classifier(Fixed(), torch.optim.SGD, lambda optimizer: None)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0]])
    targets = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    loss = classifier.loss_of(logits, targets)
    torch.testing.assert_close(loss, -(targets * logits.log_softmax(1)).sum(1).mean())
    assert float(classifier.train_tally.compute()["acc"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", slow_except(("trivial", "mixup_cutmix"), choices("augment")))
def test_every_file_of_augmentation_composes_and_says_where_it_is_from(name):
    check(composed("data=digits", f"augment={name}"))
    heading = (ROOT / "conf" / "augment" / f"{name}.yaml").read_text()
    assert re.search(rf"augment=(\[\w+,)?{name}\b", heading)
    assert name == "none" or "Paper: " in heading or "Parameters: " in heading


# ---------------------------------------------------------------- losses


def test_binary_cross_entropy_by_hand():
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])
    targets = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]])
    p = logits.sigmoid()

    def by_hand(t: Tensor) -> Tensor:
        return -(t * p.log() + (1 - t) * (1 - p).log()).mean()

    whole = (targets > 0.2).float()
    smooth = targets * 0.9 + 0.1 / 3
    for smoothing, threshold, expected in ((0, 0, targets), (0, 0.2, whole), (0.1, 0, smooth)):
        found = binary_cross_entropy(logits, targets, smoothing, None, threshold)
        torch.testing.assert_close(found, by_hand(expected))
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(
        binary_cross_entropy(logits, labels, 0.0, None, 0.0), by_hand(torch.eye(3)[labels])
    )


def test_class_weights_weigh_images_and_shares_of_them_alike():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 1, 2, 2, 2])
    weights = torch.tensor(balanced([100, 200, 300]))
    assert weights.tolist() == pytest.approx([2.0, 1.0, 2 / 3])
    log_p = logits.log_softmax(1)
    expected = -(weights[labels] * log_p[range(6), labels]).mean()
    torch.testing.assert_close(cross_entropy(logits, labels, 0.0, weights), expected)
    shares = torch.eye(3)[labels]
    torch.testing.assert_close(cross_entropy(logits, shares, 0.0, weights), expected)
    halves = [cross_entropy(logits[i : i + 3], labels[i : i + 3], 0.0, weights) for i in (0, 3)]
    torch.testing.assert_close(sum(halves) / 2, expected)  # two devices


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("augment=mixup", "data.batch_size=1"), "mixup=1.0: mixes images of a batch"),
        (
            ("data.augment.repeats=300",),
            "repeats=300: more than the images",
        ),
        (("data.augment.repeats=2", "data.balance=true"), "take one"),
        (("data.resize=[[0,16],[5,24]]",), r"ends at 24 pixels and the test is at 32"),
        (("data.resize=[[5,16]]",), "must be epochs from 0 on"),
        (
            ("data.resize=[[0,16]]", "model=textbook_cnn"),
            "head of this net fits images",
        ),
        (("classifier.bce_threshold=0.2",), "belongs to classifier.loss=bce"),
        (("classifier.class_weights=[1,2]",), "2 numbers for 10 classes"),
        (("data.augment.policy=auto",), "must be one of trivial, rand, auto_cifar10"),
        (("data.augment.jitter=[1,1,1,0.6]",), "the last at most 0.5"),
        (("data.augment.erasing_area=[0.5,0.1]",), "two shares up to 0.9"),
        (("data.augment.mix=1.5",), "must be a number from 0 to 1"),
    ],
)
def test_what_contradicts_itself_is_one_sentence(overrides, words):
    with pytest.raises(UserError, match=words) as caught:
        check(composed("data=digits", *overrides))
    assert "\n" not in str(caught.value)


def test_one_size_for_the_whole_training_may_differ_from_the_tests():
    check(composed("data=digits", "data.resize=[[0,24]]"))  # arXiv 1906.06423


def test_a_run_of_before_has_none_of_it(tmp_path):
    data = ImageDataModule(source=Digits(str(tmp_path)), image_size=32)
    data.setup("fit")
    images, labels, draws = next(iter(data.train_dataloader()))
    assert draws.shape == (128, plan.DRAWS)
    assert labels.shape == (128,)
    assert len(images) == 128
