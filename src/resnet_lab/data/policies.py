"""What happens to a training image besides crop and flip: `data.augment` of a config.

Every image has its own draws, int32 and uniform in [0, 2**31), of the plan's streams; operations
and magnitudes are those of `torchvision.transforms.v2`. See `ops` for how a batch is done at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resnet_lab.data import ops, plan
from resnet_lab.data.augment import cutout_of, within
from resnet_lab.data.ops import NUMBER, OPS, doubles

WHOLE = 2.0**31  # one more than the largest draw
BINS = 31  # magnitudes to choose from; AutoAugment has 10

Range = tuple[float, float]


def _shared(widest: float, shift: float) -> dict[str, Range]:
    """The first and the last of the evenly spaced magnitudes that may have either sign."""
    factors = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), (0.0, widest))
    return {"TranslateX": (0.0, shift), "TranslateY": (0.0, shift), **factors}


def auto_space(size: int) -> dict[str, Range]:
    """AutoAugment's and RandAugment's magnitudes for images of `size` pixels a side."""
    shears = {"ShearX": (0.0, 0.3), "ShearY": (0.0, 0.3), "Rotate": (0.0, 30.0)}
    return {**_shared(0.9, 150.0 / 331.0 * size), **shears}


def wide_space(size: int) -> dict[str, Range]:
    """TrivialAugmentWide's magnitudes, the same for images of any size."""
    shears = {"ShearX": (0.0, 0.99), "ShearY": (0.0, 0.99), "Rotate": (0.0, 135.0)}
    return {**_shared(0.99, 32.0), **shears}


def magnitudes(space: dict[str, Range], bins: int, most_bits: int) -> tuple[Tensor, Tensor]:
    """float64 [ops, bins], and bool [ops]: whether a magnitude may have either sign.

    Args:
        most_bits: how many Posterize takes away at most.
    """
    table = torch.zeros(len(OPS), bins, dtype=torch.float64)
    signed = torch.zeros(len(OPS), dtype=torch.bool)
    for name, (first, last) in space.items():
        table[NUMBER[name]] = torch.linspace(first, last, bins).double()
        signed[NUMBER[name]] = True
    table[NUMBER["Solarize"]] = torch.linspace(1.0, 0.0, bins).double()
    table[NUMBER["Posterize"]] = (8 - torch.arange(bins) / ((bins - 1) / most_bits)).round()
    return table, signed


# RandAugment and TrivialAugment choose among these, each as likely.
CHOICES = tuple(name for name in OPS if name != "Invert")


class Trivial:
    """One operation an image, of any magnitude: TrivialAugment (Wide).

    Source: Mueller and Hutter 2021, arXiv 2103.10158, Section 3 and Table 9.
    """

    columns = 3
    among = frozenset(CHOICES)

    def __init__(self, size: int) -> None:
        table, signed = magnitudes(wide_space(size), BINS, 6)
        self.tables = table, signed, torch.tensor([NUMBER[name] for name in CHOICES])

    def rounds(self, draws: Tensor, tables: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        table, signed, choices = tables
        op = choices[draws[:, 0].long() % len(CHOICES)]
        magnitude = table[op, draws[:, 1].long() % BINS]
        return [(op, _with_sign(magnitude, signed[op], draws[:, 2]))]


class Rand:
    """Some operations an image, one after the other, of one magnitude: RandAugment.

    Source: Cubuk et al. 2019, arXiv 1909.13719, Section 3.

    Args:
        n: how many.
        magnitude: from 0 to 30.
    """

    among = frozenset(CHOICES)

    def __init__(self, size: int, n: int, magnitude: int) -> None:
        self.columns = 2 * n
        table, signed = magnitudes(auto_space(size), BINS, 4)
        choices = torch.tensor([NUMBER[name] for name in CHOICES])
        self.tables = table[:, magnitude].clone(), signed, choices

    def rounds(self, draws: Tensor, tables: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        table, signed, choices = tables
        found = []
        for i in range(0, self.columns, 2):
            op = choices[draws[:, i].long() % len(CHOICES)]
            found.append((op, _with_sign(table[op], signed[op], draws[:, i + 1])))
        return found


class Auto:
    """One of 25 pairs of operations an image, each with its probability: AutoAugment.

    Source: Cubuk et al. 2018, arXiv 1805.09501, Tables 7 (CIFAR-10) and 9 (ImageNet).

    Args:
        pairs: a line for each pair: operation, probability in tenths, magnitude from 0 to 9, twice.
    """

    columns = 5

    def __init__(self, size: int, pairs: str) -> None:
        lines = [line.split() for line in pairs.strip().splitlines()]
        halves = [[line[:3], line[3:]] for line in lines]
        self.among = frozenset(op for pair in halves for op, _, _ in pair)
        table, signed = magnitudes(auto_space(size), 10, 4)
        numbers = [[[NUMBER[op], int(p), int(m)] for op, p, m in pair] for pair in halves]
        self.tables = table, signed, torch.tensor(numbers)

    def rounds(self, draws: Tensor, tables: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        table, signed, numbers = tables
        chosen = numbers[draws[:, 0].long() % len(numbers)]  # [b, 2, 3]
        found = []
        for i in (0, 1):
            op, tenths, bin_ = chosen[:, i].unbind(1)
            op = torch.where(draws[:, 1 + 2 * i].long() * 10 < tenths * 2**31, op, 0)
            found.append((op, _with_sign(table[op, bin_], signed[op], draws[:, 2 + 2 * i])))
        return found


def _with_sign(magnitude: Tensor, signed: Tensor, draws: Tensor) -> Tensor:
    return torch.where(signed & (draws & 1).bool(), -magnitude, magnitude)


CIFAR10 = """
Invert 1 0 Contrast 2 6
Rotate 7 2 TranslateX 3 9
Sharpness 8 1 Sharpness 9 3
ShearY 5 8 TranslateY 7 9
AutoContrast 5 0 Equalize 9 0
ShearY 2 7 Posterize 3 7
Color 4 3 Brightness 6 7
Sharpness 3 9 Brightness 7 9
Equalize 6 0 Equalize 5 0
Contrast 6 7 Sharpness 6 5
Color 7 7 TranslateX 5 8
Equalize 3 0 AutoContrast 4 0
TranslateY 4 3 Sharpness 2 6
Brightness 9 6 Color 2 8
Solarize 5 2 Invert 0 0
Equalize 2 0 AutoContrast 6 0
Equalize 2 0 Equalize 6 0
Color 9 9 Equalize 6 0
AutoContrast 8 0 Solarize 2 8
Brightness 1 3 Color 7 0
Solarize 4 5 AutoContrast 9 0
TranslateY 9 9 TranslateY 7 9
AutoContrast 9 0 Solarize 8 3
Equalize 8 0 Invert 1 0
TranslateY 7 9 AutoContrast 9 0
"""

IMAGENET = """
Posterize 4 8 Rotate 6 9
Solarize 6 5 AutoContrast 6 0
Equalize 8 0 Equalize 6 0
Posterize 6 7 Posterize 6 6
Equalize 4 0 Solarize 2 4
Equalize 4 0 Rotate 8 8
Solarize 6 3 Equalize 6 0
Posterize 8 5 Equalize 10 0
Rotate 2 3 Solarize 6 8
Equalize 6 0 Posterize 4 6
Rotate 8 8 Color 4 0
Rotate 4 9 Equalize 6 0
Equalize 0 0 Equalize 8 0
Invert 6 0 Equalize 10 0
Color 6 4 Contrast 10 8
Rotate 8 8 Color 10 2
Color 8 8 Solarize 8 7
Sharpness 4 7 Invert 6 0
ShearX 6 5 Equalize 10 0
Color 4 0 Equalize 6 0
Equalize 4 0 Solarize 2 4
Solarize 6 5 AutoContrast 6 0
Invert 6 0 Equalize 10 0
Color 6 4 Contrast 10 8
Equalize 8 0 Equalize 6 0
"""


@dataclass(frozen=True)
class Augment:
    """The section `data.augment`; conf/train.yaml explains it, `config.rules` has the limits."""

    policy: str | None = None
    rand_ops: int = 2
    rand_magnitude: int = 9
    jitter: Sequence[float] | None = None
    grayscale: float = 0.0
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)
    erasing: float = 0.0
    erasing_area: Sequence[float] = (0.02, 0.33)
    mixup: float = 0.0
    cutmix: float = 0.0
    mix: float = 1.0
    repeats: int = 1

    @property
    def mixing(self) -> tuple[float, float] | None:
        """The parameters of the Beta distributions of MixUp and CutMix; None for neither."""
        return (self.mixup, self.cutmix) if (self.mixup or self.cutmix) and self.mix else None


def policy(options: Augment, size: int) -> Trivial | Rand | Auto | None:
    """The policy for images of `size` pixels a side."""
    if options.policy == "trivial":
        return Trivial(size)
    if options.policy == "rand":
        return Rand(size, options.rand_ops, options.rand_magnitude)
    if options.policy is not None:
        return Auto(size, {"auto_cifar10": CIFAR10, "auto_imagenet": IMAGENET}[options.policy])
    return None


class Augmentation:
    """`data.augment` for images of one size.

    Attributes:
        streams: of the plan, each with the columns that are drawn for an image.
        mixing: see `Augment`.
    """

    def __init__(self, options: Augment, size: int) -> None:
        self.options, self.mixing = options, options.mixing
        self.policy = policy(options, size)
        self._tables: dict[torch.device, list[Tensor]] = {}
        wanted = {
            plan.POLICY: self.policy.columns if self.policy else 0,
            plan.JITTER: 4 * bool(options.jitter and any(options.jitter)),
            plan.GRAYSCALE: bool(options.grayscale),
            plan.BLUR: 2 * bool(options.blur),
            plan.ERASING: 5 * bool(options.erasing),
        }
        self.streams = tuple((stream, int(n)) for stream, n in wanted.items() if n)
        self._columns: dict[int, slice] = {}
        start = plan.DRAWS
        for stream, n in self.streams:
            self._columns[stream] = slice(start, start + n)
            start += n
        self._of_step = slice(start, start + plan.MIXING)

    def pixels(self, images: Tensor, draws: Tensor) -> Tensor:
        """uint8 [b, h, w, 3] -> the same, changed in place or colour."""
        for stream, change in (
            (plan.POLICY, self._by_policy),
            (plan.JITTER, self._jittered),
            (plan.GRAYSCALE, self._grayed),
            (plan.BLUR, self._blurred),
        ):
            if stream in self._columns:
                images = change(images, draws[:, self._columns[stream]])
        return images

    def _by_policy(self, images: Tensor, draws: Tensor) -> Tensor:
        assert self.policy is not None
        if draws.device not in self._tables:
            floats = doubles(draws.device)
            self._tables[draws.device] = [
                t.to(draws.device, floats if t.is_floating_point() else t.dtype)
                for t in self.policy.tables
            ]
        for op, magnitude in self.policy.rounds(draws, self._tables[draws.device]):
            images = ops.apply(images, op, magnitude, self.policy.among)
        return images

    def _jittered(self, images: Tensor, draws: Tensor) -> Tensor:
        """Brightness, contrast, saturation and hue, in this order: torchvision draws the order."""
        assert self.options.jitter is not None
        *factors, hue = self.options.jitter
        share = draws.to(doubles(draws.device)) / WHOLE  # [b, 4]
        for i, name in enumerate(("Brightness", "Contrast", "Color")):
            if factors[i]:
                least, most = max(0.0, 1 - factors[i]) - 1, factors[i]
                op = torch.full_like(draws[:, i], NUMBER[name])
                images = ops.apply(
                    images, op, least + (most - least) * share[:, i], frozenset((name,))
                )
        return ops.shift_hue(images, hue * (2 * share[:, 3] - 1)) if hue else images

    def _grayed(self, images: Tensor, draws: Tensor) -> Tensor:
        chosen = _chosen(draws[:, 0], self.options.grayscale)
        return torch.where(chosen[:, None, None, None], ops.grayscale(images), images)

    def _blurred(self, images: Tensor, draws: Tensor) -> Tensor:
        least, most = self.options.blur_sigma
        sigma = least + (most - least) * draws[:, 1].float() / WHOLE
        size = blur_size(images.shape[1])
        chosen = _chosen(draws[:, 0], self.options.blur)
        return torch.where(chosen[:, None, None, None], ops.blur(images, sigma, size), images)

    def erase(self, images: Tensor, draws: Tensor) -> Tensor:
        """Normalised float32 [b, c, h, w] with a rectangle of each of some at 0, the mean colour.

        Zhong et al. 2017, arXiv 1708.04896, Algorithm 1. The ratio of the sides is drawn among
        those with which the area fits into the image; torchvision draws anew where it does not.
        """
        if plan.ERASING not in self._columns:
            return images
        draws = draws[:, self._columns[plan.ERASING]]
        h, w = images.shape[-2:]
        share = draws.float() / WHOLE
        least, most = self.options.erasing_area
        area = least + (most - least) * share[:, 1]
        reach = area.log().neg().clamp(max=RATIO)  # of the ratio's logarithm, to either side
        ratio = ((2 * share[:, 2] - 1) * reach).exp()
        height = (h * (area * ratio).sqrt()).round().int().clamp(1, h - 1)
        width = (w * (area / ratio).sqrt()).round().int().clamp(1, w - 1)
        chosen = _chosen(draws[:, 0], self.options.erasing)
        top, left = draws[:, 3] % (h - height + 1), draws[:, 4] % (w - width + 1)
        return cutout_of(images, top, height * chosen, left, width)

    def mix(self, images: Tensor, labels: Tensor, draws: Tensor, classes: int) -> Any:
        """A batch in which every image is mixed with its partner, and its targets with its own.

        MixUp: Zhang et al. 2017, arXiv 1710.09412, Section 2; CutMix: Yun et al. 2019,
        arXiv 1905.04899, Section 3.1. One share for a whole batch, as in both papers.

        Args:
            images: float32 [b + 1, c, h, w]; each but the last is the partner of the next.
            labels: int64 [b, 2], of each image and its partner.
            draws: int32 [b + 1, columns].

        Returns:
            images float32 [b, c, h, w], targets float32 [b, classes].
        """
        step = draws[0, self._of_step]
        own, partners = images[1:], images[:-1]
        h, w = images.shape[-2:]
        mixup, cutmix = (step[i].float() / WHOLE for i in (plan.MIXUP, plan.CUTMIX))
        half_h, half_w = (((1 - cutmix).sqrt() * (n / 2)).int() for n in (h, w))
        row, column = step[plan.ROW] % h, step[plan.COLUMN] % w
        top, left = (row - half_h).clamp(min=0), (column - half_w).clamp(min=0)
        height = (row + half_h).clamp(max=h) - top
        width = (column + half_w).clamp(max=w) - left
        down, across = within(top[None], height[None], h), within(left[None], width[None], w)
        box = down.T & across  # [h, w]
        kept = 1 - (height * width).float() / (h * w)
        if self.options.mixup and self.options.cutmix:
            cuts = (step[plan.WHICH] & 1).bool()
        else:
            cuts = torch.full_like(step[0], bool(self.options.cutmix), dtype=torch.bool)
        none = ~_chosen(step[plan.WHETHER], self.options.mix)
        share = torch.where(none, 1.0, torch.where(cuts, kept, mixup))
        weight = torch.where(cuts, (~box).float(), mixup)  # [h, w]
        weight = torch.where(none, 1.0, weight)
        mixed = torch.lerp(partners, own, weight.to(images.dtype))
        every = torch.arange(classes, device=labels.device)
        first, second = ((labels[:, i : i + 1] == every).float() for i in (0, 1))
        return mixed, share * first + (1 - share) * second


RATIO = 1.1939  # log 3.3, torchvision's largest ratio of an erased rectangle's sides


def blur_size(side: int) -> int:
    """Of a Gaussian's kernel: a tenth of the side (Chen et al. 2020, arXiv 2002.05709, A), odd."""
    return max(3, side // 10 // 2 * 2 + 1)


def _chosen(draws: Tensor, share: float) -> Tensor:
    """bool: whether a draw is among so many of all."""
    return draws < int(share * WHOLE) if share < 1 else torch.ones_like(draws, dtype=torch.bool)
