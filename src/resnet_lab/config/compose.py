"""From overrides to a config, and from a config to its dotted keys; imports no torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from resnet_lab.config.errors import UserError
from resnet_lab.trust import (
    check_hydra,
    check_trust,
)

SOURCE_FOLDER = Path(__file__).resolve().parents[1]


CONF = SOURCE_FOLDER.parents[1] / "conf"


GROUPS = {path.name for path in CONF.glob("*/")}


def composed(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """What `python train.py` with these overrides would run, and the choice of every group.

    Nothing but `trust` is checked yet, and `run_dir` is left to be set. ValueError where an
    override gives several values, else Hydra's own errors.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            raise UserError(f"{override.input_line}: give one value alone.")
    # Within train.py Hydra is there already, and knows of --config-dir.
    here: AbstractContextManager[Any] = (
        nullcontext()
        if GlobalHydra.instance().is_initialized()
        else initialize_config_dir(str(CONF), version_base="1.3")
    )
    with here:
        cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
    check_trust(cfg, overrides)
    choices = {str(group): str(choice) for group, choice in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def typed(config: DictConfig, kind: str) -> list[str]:
    """The overrides of the command line: "task" ours, "hydra" Hydra's own; what they
    interpolate (`${run_dir}`) stays as it was typed."""
    overrides: list[str] = OmegaConf.to_container(config.hydra.overrides[kind])  # type: ignore[assignment]
    return overrides


@contextmanager
def _guarded_composition() -> Iterator[None]:
    """Look at what Hydra has composed before it makes anything of it; it has no hook for that.

    Where a run is resumed, what is typed for it is put aside: it is meant for the run's own
    config, which may have keys that the one composed here has not (see `go_on`).
    """
    compose = ConfigLoaderImpl.load_configuration

    def load_configuration(
        self: ConfigLoaderImpl, config_name: str, overrides: list[str], *args: Any, **kwargs: Any
    ) -> DictConfig:
        single = kwargs.get("run_mode") is RunMode.RUN
        resumed = single and any(override.startswith("resume=") for override in overrides)
        now = of_the_command(overrides) if resumed else overrides
        cfg = compose(self, config_name, now, *args, **kwargs)
        check_hydra(cfg)
        if resumed:
            aside = [override for override in overrides if override not in now]
            with read_write(cfg.hydra):
                cfg.hydra.overrides.task = [*typed(cfg, "task"), *aside]
        return cfg

    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = compose  # type: ignore[method-assign]


OF_THE_COMMAND = ("hydra", "resume", "run_dir", "sweep", "trust")


def within(key: str, others: Iterable[str]) -> bool:
    return any(key == other or key.startswith(f"{other}.") for other in others)


class _Absent:
    pass


ABSENT = _Absent()


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Every value of a config by its dotted key; folders of data as absolute paths."""
    return dict(_flat(config, ""))


def _flat(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for name, child in node.items():
            yield from _flat(child, f"{key}.{name}" if key else str(name))
    elif key in ("data.root", "data.cache_dir") and isinstance(node, str) and "${" not in node:
        yield key, str(Path(node).absolute())
    else:
        yield key, node


def moved(node: Any, old: str, new: str) -> Any:
    """The same with every path below the folder `old` below `new` instead."""
    if isinstance(node, Mapping):
        return {moved(key, old, new): moved(child, old, new) for key, child in node.items()}
    if isinstance(node, list):
        return [moved(child, old, new) for child in node]
    if isinstance(node, str) and (node == old or node.startswith(f"{old}/")):
        return new + node.removeprefix(old)
    return node


def of_the_command(overrides: Sequence[str]) -> list[str]:
    """Of a command line with `resume=`, what is not meant for the run's config."""
    return [o for o in overrides if within(key_of(o), OF_THE_COMMAND)]


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].replace("/", ".").partition("@")[0]
