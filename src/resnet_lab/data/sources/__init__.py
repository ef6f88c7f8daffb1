"""Sources: something on disk turned into uint8 images and labels, decoded once and cached."""

from resnet_lab.data.sources.arrays import Digits
from resnet_lab.data.sources.cifar import CIFAR10, CIFAR100
from resnet_lab.data.sources.folder import ImageFolder
from resnet_lab.data.sources.protocol import Source

__all__ = ["CIFAR10", "CIFAR100", "Digits", "ImageFolder", "Source"]
