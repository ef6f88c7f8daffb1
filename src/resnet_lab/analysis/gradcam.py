"""Grad-CAM: where in a picture a net sees evidence for a class.

Source: Selvaraju et al. 2016, arXiv 1610.02391, Section 3.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from resnet_lab.batchnorm import refresh_statistics
from resnet_lab.config.errors import UserError
from resnet_lab.config.suggest import offer
from resnet_lab.files import printable
from resnet_lab.models.parts import parts
from resnet_lab.run.build import build_net

BATCH = 32  # images at once: a backward pass keeps more of them than a forward pass
SEED = 0  # of random weights


def heat_maps(net: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """The evidence for some classes at every place of a layer's output.

    Args:
        net: in evaluation mode, so that images do not influence each other.
        layer: a module of `net` whose output is [n, channels, h, w].
        images: what the net gets, float32 [n, channels, height, width].
        classes: int64 [n, k], for each image k classes.

    Returns:
        float32 [n, k, h, w] on the CPU, 0 or more, in units of the logit. Zero everywhere: nowhere
        does the layer speak for the class.
    """
    columns = classes.to(images.device)
    batches = zip(images.split(BATCH), columns.split(BATCH), strict=True)
    return torch.cat([_heat_maps(net, layer, *batch).cpu() for batch in batches])


def _heat_maps(net: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    with _no_learning(net), _replaced(layer) as found:
        logits = net(images).float()
    features = found[-1]
    maps = []
    for column in classes.unbind(dim=1):
        score = logits.gather(1, column[:, None]).sum()  # an image's logit depends on it alone
        (gradient,) = torch.autograd.grad(score, features, retain_graph=True)
        importance = gradient.mean(dim=(2, 3), keepdim=True)  # of each channel, equation 1
        maps.append((importance * features).sum(dim=1).relu())  # equation 2
    return torch.stack(maps, dim=1).detach().float()


@contextmanager
def _no_learning(net: nn.Module) -> Iterator[None]:
    """Within it no weight asks for its gradient, so that a forward pass keeps little."""
    weights = [weight for weight in net.parameters() if weight.requires_grad]
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


@contextmanager
def _replaced(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within it a forward pass goes on from a leaf in place of the layer's output; all leaves."""
    found: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[-1].clone()  # a layer that works in place must not change the leaf

    handle = layer.register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


def find_layer(net: nn.Module, images: Tensor, name: str | None = None) -> nn.Module:
    """A layer for `heat_maps`.

    Args:
        images: one or more that the net gets; how large its outputs are is tried on the first.
        name: a stage ("stage2": its last block), a part ("stage2.1") or a module of the net; None:
            the last output with more than one pixel that no pooling has made.

    Raises:
        UserError: there is none, or its output is no picture.
    """
    if name is None:
        if not (pictures := _picture_layers(net, images[:1])):
            raise UserError(
                "this net has no layer whose output is [channels, height, width] of more than one "
                "pixel, which a heat map needs."
            )
        return pictures[-1]
    # A stage's name stands for the last of its parts.
    named = {part.stage: part.module for part in parts(net)}
    named |= {part.name: part.module for part in parts(net)}
    modules = dict(net.named_modules())
    layer = named.get(name, modules.get(name) if name else None)
    if layer is None:
        raise UserError(f"--layer {printable(name)}: {offer(name, list(named))}")
    if not any(found is layer for found in _picture_layers(net, images[:1], pooled=True)):
        raise UserError(
            f"--layer {printable(name)}: its output is not [channels, height, width] of more than "
            "one pixel; use an earlier layer."
        )
    return layer


def _picture_layers(net: nn.Module, image: Tensor, pooled: bool = False) -> list[nn.Module]:
    """The modules whose output has more than one pixel, in the order in which they end.

    Args:
        pooled: also poolings, and what ends in one.
    """
    found: list[tuple[nn.Module, Tensor]] = []
    kept: list[Tensor] = []  # outputs of poolings, which a Sequential around them returns as well

    def hook(module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output[0, 0].numel() > 1:
            if "Pool" in type(module).__name__:
                kept.append(output)
            found.append((module, output))

    handles = [module.register_forward_hook(hook) for module in net.modules()]
    try:
        with torch.inference_mode():
            net(image)
    finally:
        for handle in handles:
            handle.remove()
    return [
        module for module, output in found if pooled or not any(output is other for other in kept)
    ]


def random_twin(cfg: DictConfig, images: Tensor) -> nn.Module:
    """The net of `cfg` with random weights, in evaluation mode: a control for heat maps.

    What its maps show comes from the architecture and the picture, not from anything learned
    (Adebayo et al. 2018, arXiv 1810.03292: the model parameter randomization test). Its batch norms
    have the statistics of `images`, without which the numbers of a deep net would grow out of
    range.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net = build_net(cfg)
    net.to(images.device).eval()
    for module in net.modules():
        if getattr(module, "track_running_stats", False):
            module.train()
    refresh_statistics(net, images.split(BATCH))
    return net.eval()


def correlation(maps: Tensor, others: Tensor) -> float:
    """The mean over images of the correlation of two heat maps, from -1 to 1; NaN if there is none.

    Args:
        maps, others: [n, h, w]. An image with a map of one value has no correlation.
    """
    a, b = (each.double().flatten(1) for each in (maps, others))
    a, b = (each - each.mean(dim=1, keepdim=True) for each in (a, b))
    lengths = a.norm(dim=1) * b.norm(dim=1)
    counted = lengths > 0
    return float(((a * b).sum(dim=1)[counted] / lengths[counted]).mean())


def extremes(probabilities: Tensor, labels: Tensor, most: int) -> tuple[list[int], list[int]]:
    """The images that are wrong with the highest confidence, and right with the lowest.

    Args:
        probabilities: float [n, classes].
        labels: int64 [n].
        most: how many of each.
    """
    confidence, predicted = probabilities.max(dim=1)
    order = confidence.argsort(stable=True)
    right = (predicted == labels)[order]
    return order[~right].flip(0)[:most].tolist(), order[right][:most].tolist()
