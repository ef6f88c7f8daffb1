"""resnet-lab from Python: `import resnet_lab as lab`.

`run`, `sweep`, `load`, `table` and `compose` do what the commands do (see `resnet_lab.api`), and
`models` lists the published nets; `ResNet`, `Classifier` and `ImageDataModule` are for one's own
code. Nothing is imported until it is used, so this import itself takes no time.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_lab.api import compose, load
    from resnet_lab.classifier import Classifier
    from resnet_lab.config.errors import UserError
    from resnet_lab.data.datamodule import ImageDataModule
    from resnet_lab.models.resnet import ResNet
    from resnet_lab.results import Run, Sweep, table
    from resnet_lab.run.build import build_classifier, build_data, build_net

_PLACES = {
    "resnet_lab.api": ("compose", "load"),
    "resnet_lab.classifier": ("Classifier",),
    "resnet_lab.config.errors": ("UserError",),
    "resnet_lab.data.datamodule": ("ImageDataModule",),
    "resnet_lab.models.resnet": ("ResNet",),
    "resnet_lab.results": ("Run", "Sweep", "table"),
    "resnet_lab.run.build": ("build_classifier", "build_data", "build_net"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
_ROOMS = ("models", "run", "sweep")

__all__ = [
    "Classifier",
    "ImageDataModule",
    "ResNet",
    "Run",
    "Sweep",
    "UserError",
    "build_classifier",
    "build_data",
    "build_net",
    "compose",
    "load",
    "models",
    "run",
    "sweep",
    "table",
]


class Room(ModuleType):
    """A package that can be called, too: `resnet_lab.run` holds modules, and `run(...)` runs."""

    def __call__(self, *overrides: str, **settings: Any) -> Any:
        """See the function of this name in `resnet_lab.api`."""
        verb = getattr(import_module("resnet_lab.api"), self.__name__.rpartition(".")[2])
        return verb(*overrides, **settings)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_ROOMS})
