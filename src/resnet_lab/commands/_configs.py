"""Configs of a command line on which keys may have several values: all combinations."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from resnet_lab.config.check import check
from resnet_lab.config.compose import CONF, VERSION_BASE, absolute, compose
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import sentence
from resnet_lab.files import printable
from resnet_lab.language import Translate
from resnet_lab.sweep.grid import points, swept_keys


class Config(NamedTuple):
    """One combination.

    Attributes:
        cfg: what train.py would run, checked.
        choices: of every group, by its name.
        own: the values of the keys that have several on the command line.
    """

    cfg: DictConfig
    choices: dict[str, str]
    own: dict[str, str]

    @property
    def data(self) -> str:
        """What its images are called: of an image folder the folder's name."""
        folder = self.cfg.data.get("root")
        if folder and str(self.cfg.data.source._target_).endswith(".ImageFolder"):
            return printable(Path(absolute(folder)).name)
        return self.choices["data"]

    def label(self, say: Translate) -> str:
        """What it has of its own, for a legend: "resnet56, shortcut A, norm=none".

        Alone, the name of its net.
        """
        parts = []
        for key, value in self.own.items():
            value = printable(value)
            if key == "model.shortcut":
                kind = "plain" if value == "none" else "shortcut {shortcut}"
                parts.append(say(kind, shortcut=value))
            elif key in self.choices:
                parts.append(value)
            else:
                parts.append(f"{key.rpartition('.')[2]}={value}")
        return ", ".join(parts) or self.choices["model"]


def _as_typed(value: str) -> str:
    """Hydra turns true and false into Python's words."""
    return value.lower() if value in ("True", "False") else value


def common(texts: Iterable[str]) -> str | None:
    """The one text that all are; None where they differ."""
    different = set(texts)
    return different.pop() if len(different) == 1 else None


def combinations(overrides: Sequence[str], training: bool = True) -> list[Config]:
    """The configs of a command line, in the order of a sweep.

    Args:
        overrides: as for train.py; of keys with several values all combinations.
        training: as in `config.check.check`.

    Raises:
        UserError: a config is wrong; with its values, where others are not.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    keys = swept_keys(overrides)
    found = []
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        for job in points(overrides, GlobalHydra.instance().config_loader()):
            values = dict(override.lstrip("+").partition("=")[::2] for override in job)
            own = {key: _as_typed(values[key]) for key in keys}
            try:
                cfg, choices = compose(job)
                check(cfg, training)
            except Exception as error:
                message = sentence(error)
                if message is None or not own:
                    raise
                which = " ".join(f"{key}={printable(value)}" for key, value in own.items())
                said = message if message.startswith(which) else f"{which}: {message}"
                raise UserError(said) from error
            found.append(Config(cfg, choices, own))
    if not found:
        raise UserError(f"{' '.join(overrides)}: no name fits this pattern.")
    return found
