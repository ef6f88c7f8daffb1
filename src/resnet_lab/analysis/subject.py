"""A finished run under study: its net on a device, and images of one split."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_lab.data.augment import normalise, scale_and_shift
from resnet_lab.language import Translate
from resnet_lab.run import machine
from resnet_lab.run.images import open_split
from resnet_lab.run.load import Finished, load_run

BATCH = 250  # images at once


@dataclass
class Subject:
    """A run's net in evaluation mode and float32, and images that it is shown.

    Attributes:
        run: the finished run.
        device: where `run.net` lies.
        pixels: uint8 [n, h, w, channels], on the CPU.
        labels: int64 [n], on the CPU.
    """

    run: Finished
    device: torch.device
    pixels: Tensor
    labels: Tensor

    @property
    def net(self) -> nn.Module:
        return self.run.net

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [b, h, w, channels] -> what the net gets, float32 [b, channels, h, w] on the
        device."""
        mean, std = self.run.datamodule.mean, self.run.datamodule.std
        return normalise(pixels.to(self.device), *scale_and_shift(mean, std, self.device))

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """(images float32 [b, channels, h, w], labels int64 [b]) on the device, all in order."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size), strict=True):
            yield self.normalised(pixels), labels.to(self.device)

    def logits(self, pixels: Tensor | None = None) -> Tensor:
        """float32 [n, classes] on the CPU: of all images, or of `pixels` uint8 [n, h, w, c]."""
        chosen = self.pixels if pixels is None else pixels
        with torch.inference_mode():
            parts = [self.net(self.normalised(part)).float().cpu() for part in chosen.split(BATCH)]
        return torch.cat(parts)

    def accuracy(self) -> float:
        """The share of the images that the net gets right, from 0 to 1."""
        return float((self.logits().argmax(dim=1) == self.labels).double().mean())


def open_subject(
    run_dir: Path,
    *,
    split: str = "test",
    images: int | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Subject:
    """A finished run with images of `split`, decoded.

    Args:
        images: how many, evenly spaced over the split; None is all of them.
        device, checkpoint, overrides, trust: as in `machine.named` and `load_run`.

    Raises:
        UserError: the run cannot be loaded, or it has no such images.
    """
    chosen = machine.named(device)
    accelerator = "cpu" if chosen.type == "cpu" else "auto"
    run = load_run(run_dir, checkpoint, overrides, trust, accelerator)
    machine.allow_tf32(False)
    open_split(run, split, images)
    data = run.datamodule
    loader = data.eval_dataloader(split)
    try:
        pairs = [(pixels[labels >= 0], labels[labels >= 0]) for pixels, labels in loader]
    finally:
        loader.close()
    pixels, labels = (torch.cat(part).cpu() for part in zip(*pairs, strict=True))
    run.net.to(chosen).eval()
    return Subject(run, chosen, pixels, labels)


def titles(runs: Sequence[Finished], say: Translate) -> list[str]:
    """Names of nets for a legend, no two the same: "resnet56, plain", "resnet20, shortcut A"."""
    names = []
    for run in runs:
        name = str(run.result.get("model", run.run_dir.name))
        shortcut = run.cfg.model.get("shortcut")
        if shortcut is not None:
            kind = "plain" if shortcut == "none" else "shortcut {shortcut}"
            name = f"{name}, {say(kind, shortcut=shortcut)}"
        names.append(name)
    if len(set(names)) < len(names):
        seeds = [say("seed {seed}", seed=run.cfg.seed) for run in runs]
        names = [", ".join(pair) for pair in zip(names, seeds, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{n} ({number})" for number, n in enumerate(names, 1)]
    return names


@contextmanager
def recording(modules: Sequence[nn.Module], take: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Within it, every forward pass calls take(number of the module, its output)."""

    def hook(number: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: take(number, output)

    handles = [m.register_forward_hook(hook(number)) for number, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
