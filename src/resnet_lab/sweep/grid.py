"""From a command line with several values to jobs: their folders, overrides and configs."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
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
from resnet_lab.sweep.job import Job

# Hydra's own settings that belong to the sweep, not to a job.
OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra.run", "hydra.launcher", "hydra.sweeper")
# What says where and how jobs run, not what they compute.
NOT_IDENTITY = ("hydra", "sweep", "run_dir", "resume")
MOVABLE = ("data.cache_dir",)
MANY = 50  # jobs, from which on checking them takes long enough to be announced
ROOT_GROUP = "experiment"  # its files change any part of the config


def points(arguments: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """The combinations of a command line's values, each as the overrides of one job."""
    parser = OverridesParser.create(config_loader=loader)
    jobs: list[list[str]]
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(list(arguments)), None)
    return jobs


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
    may stand in a folder name. UserError where two jobs get the same, or one does not give
    a key a value.
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
    extra = for_every_job(master)
    faulty: dict[str, list[str]] = {}
    composer = _Composer(master, loader)
    if len(names) > MANY:
        console.print(f"checking {len(names):,} jobs", soft_wrap=True)
    for name, job_overrides in zip(names, overrides, strict=True):
        try:
            cfg = composer.compose(job_overrides)
            check(cfg)
            swept = {key: _keyed(job_overrides)[key] for key in keys}
            jobs.append(_job(sweep_folder / name, cfg, [*extra, *job_overrides], swept, master))
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
    sentence of its own, which does not say over what.
    """
    given = [*typed(master, "hydra"), *overrides]
    cfg = loader.load_configuration(master.hydra.job.config_name, given, RunMode.RUN)
    OmegaConf.copy_cache(from_config=master, to_config=cfg)
    return cfg


def for_every_job(master: DictConfig) -> list[str]:
    """The words of the command line that are for Hydra, and hold for each job, too."""
    options = get_args_parser().parse_args(sys.argv[1:])
    places = {
        "--config-path": options.config_path,
        "--config-name": options.config_name,
        "--config-dir": options.config_dir,
    }
    flags = [f"{flag}={value}" for flag, value in places.items() if value is not None]
    settings = [
        override
        for override in typed(master, "hydra")
        if not override.lstrip("+~").replace("/", ".").startswith(OF_THE_SWEEP)
    ]
    return [*flags, *settings]


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
    each = master.sweep.jobs_per_device
    if each is not None and each < 1 and devices not in ("auto", -1, round(1 / each)):
        raise UserError(
            f"sweep.jobs_per_device={each} gives each job {round(1 / each)} devices, which "
            f"contradicts trainer.devices={devices}; add trainer.devices=auto."
        )
    config: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    config = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    return Job(
        folder=folder,
        overrides=tuple(o for o in overrides if not _key(o).startswith("sweep.")),
        swept=swept,
        config=json.loads(json.dumps(config)),  # as it will be read again
        devices=None if devices in ("auto", -1) else devices,
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
