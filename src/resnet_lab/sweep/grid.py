"""From a command line with several values to jobs: their folders, overrides and configs."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.check import check
from resnet_lab.config.compose import ABSENT, flat, typed, within
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import sentence
from resnet_lab.screen import console

# What says where and how jobs run, not what they compute.
NOT_IDENTITY = ("hydra", "sweep", "run_dir", "resume")
MOVABLE = ("data.cache_dir",)
MANY = 50  # jobs, from which on checking them takes long enough to be announced
ROOT_GROUP = "experiment"  # its files change any part of the config


@dataclass
class Job:
    """One point of the grid, and how far it is.

    `overrides` are what a user would type for the single run, `swept` those of them that name its
    folder, by key. `config` is what they compose to, interpolations unresolved and nothing filled
    in from the data. `max_epochs` is None where steps or time limit the run. `state` is one of
    waiting, running, finished, pruned, failed, interrupted, or paused at its rung: the epochs after
    which it stops (None: at its end); `seconds` and `attempts` count all attempts so far.
    """

    folder: Path
    overrides: list[str]
    swept: dict[str, str]
    config: dict[str, Any]
    devices: int | None  # None: all that there are
    on_cpu: bool
    max_epochs: int | None
    state: str = "waiting"
    seconds: float = 0.0
    attempts: int = 0
    error: str | None = None
    resume: bool = False  # the next attempt goes on from the newest checkpoint
    rung: int | None = None

    @property
    def name(self) -> str:
        return self.folder.name


def swept_keys(arguments: Iterable[str]) -> list[str]:
    """The keys that are given several values (or a range, or `choice(one)`), the last time."""
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    swept = {_key(o.get_key_element()): o.is_sweep_override() for o in overrides}
    return [key for key in swept if swept[key]]


def _key(element: str) -> str:
    return element.lstrip("+~")


def _keyed(overrides: Iterable[str]) -> dict[str, str]:
    return {_key(key): value for key, _, value in (o.partition("=") for o in overrides)}


def folder_names(jobs: Sequence[Sequence[str]], keys: Sequence[str]) -> list[str]:
    """A name for each job: "model=resnet20,shortcut=A,seed=0".

    Of a key the last component is shown, or all where two would look the same; of a value what
    may stand in a folder name. ValueError where two jobs get the same, or one does not tell
    the value of a key.
    """
    last = {key: re.split(r"[./]", key)[-1] for key in keys}
    seen = Counter(last.values())
    shown = {key: last[key] if seen[last[key]] == 1 else _fit(key) for key in keys}
    names = []
    for overrides in jobs:
        values = _keyed(overrides)
        if lacking := [key for key in keys if key not in values]:
            raise UserError(
                f"{', '.join(lacking)}: this sweep's folders are named by it, so give it a value, "
                "or name another sweep with sweep.name=..."
            )
        names.append(",".join(f"{shown[key]}={_fit(values[key])}" for key in keys))
    for name, count in Counter(names).items():
        if count > 1:
            raise UserError(f"{count} jobs would share the folder {name}; leave out all but one.")
        if len(name.encode()) > 200:
            raise UserError(f"The folder name {name} is too long; put shared values into a file.")
    return names


def _fit(value: str) -> str:
    return re.sub(r"[^\w.+=,-]", "-", re.sub(r"[\[\](){}'\"]", "", value))


def compose(
    master: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[Sequence[str]],
    keys: Sequence[str],
    names: Sequence[str],
    sweep_folder: Path,
) -> list[Job]:
    """Compose and check every job.

    A composition takes a quarter of a second, so one is made for each choice of groups, and the
    other values are set in it.

    Raises:
        UserError: every mistake, and the jobs that have it.
    """
    jobs: list[Job] = []
    faulty: dict[str, list[str]] = {}
    composer = _Composer(master, loader)
    if len(names) > MANY:
        console.print(f"checking {len(names):,} jobs", soft_wrap=True)
    for name, job_overrides in zip(names, overrides, strict=True):
        try:
            cfg = composer.compose(job_overrides)
            check(cfg)
            swept = {key: _keyed(job_overrides)[key] for key in keys}
            jobs.append(_job(sweep_folder / name, cfg, job_overrides, swept, master))
        except Exception as error:
            message = sentence(error)
            if message is None:
                raise
            for line in message.splitlines():
                faulty.setdefault(line, []).append(name)
    if faulty:
        raise UserError("\n".join(_fault(line, of, len(names)) for line, of in faulty.items()))
    return jobs


class _Composer:
    """Composes jobs, once for each choice of groups."""

    def __init__(self, master: DictConfig, loader: ConfigLoader) -> None:
        self.master, self.loader = master, loader
        self._parser = OverridesParser.create(config_loader=loader)
        self._bases: dict[tuple[str, ...], DictConfig] = {}
        self._groups: dict[str, bool] = {}  # key -> whether it is a group of configs

    def _is_group(self, key: str) -> bool:
        if key not in self._groups:
            self._groups[key] = bool(self.loader.get_group_options(key))
        return self._groups[key]

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """The config of a job, which holds until the next call.

        The first job with its groups brings Hydra's own part along.
        """
        values = {}
        others = []
        for text, override in zip(
            overrides, self._parser.parse_overrides(list(overrides)), strict=True
        ):
            # Added and deleted keys, groups and mappings are left to Hydra.
            if _sets_a_value(override) and not self._is_group(override.key_or_group):
                values[override.key_or_group] = override.value()
            else:
                others.append(text)
        groups = (*others, *values)
        if groups not in self._bases:
            whole = _job_config(self.master, self.loader, overrides)
            base = OmegaConf.masked_copy(whole, [key for key in map(str, whole) if key != "hydra"])
            OmegaConf.set_struct(base, False)
            self._bases[groups] = base
            return whole
        cfg = self._bases[groups]  # every job with these groups sets the same keys
        for key, value in values.items():
            OmegaConf.update(cfg, key, value)
        return cfg


def _sets_a_value(override: Override) -> bool:
    simple = not (override.is_add() or override.is_delete() or override.is_force_add())
    return simple and override.package is None and not isinstance(override.value(), dict)


def _job_config(master: DictConfig, loader: ConfigLoader, overrides: Sequence[str]) -> DictConfig:
    """A job's config, with the time and all else that is the sweep's.

    Not `load_sweep_config`: from Hydra 1.4 on it refuses a job that is itself a sweep with a
    sentence of its own, before ours can say over what.
    """
    given = [*typed(master, "hydra"), *overrides]
    cfg = loader.load_configuration(master.hydra.job.config_name, given, RunMode.RUN)
    OmegaConf.copy_cache(from_config=master, to_config=cfg)
    return cfg


def _fault(line: str, names: list[str], n_jobs: int) -> str:
    if len(names) == n_jobs:
        return line
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{others}: {line}"


def _job(
    folder: Path,
    cfg: DictConfig,
    overrides: Sequence[str],
    swept: dict[str, str],
    master: DictConfig,
) -> Job:
    devices = OmegaConf.select(cfg, "trainer.devices")
    if OmegaConf.is_list(devices):
        raise UserError(
            f"trainer.devices={list(devices)}: a sweep hands out devices by itself; say how many."
        )
    wish = master.sweep.devices_per_job
    if wish is not None and devices not in ("auto", -1, wish):
        raise UserError(
            f"sweep.devices_per_job={wish} contradicts trainer.devices={devices}; give one of them."
        )
    config: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    config = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    return Job(
        folder=folder,
        overrides=[o for o in overrides if not _key(o).startswith("sweep.")],
        swept=swept,
        config=json.loads(json.dumps(config)),  # as it will be read again
        devices=wish if devices in ("auto", -1) else devices,
        on_cpu=cfg.trainer.accelerator in ("cpu", "mps"),
        max_epochs=cfg.trainer.max_epochs if (cfg.trainer.max_epochs or -1) > 0 else None,
    )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], besides: Iterable[str]
) -> list[str]:
    """Where two configs differ, "key: old -> new", leaving out what lies below keys `besides`."""
    before, after = flat(old), flat(new)
    left_out = (*MOVABLE, *besides)
    return [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, ABSENT) != after.get(key, ABSENT) and not within(key, left_out)
    ]
