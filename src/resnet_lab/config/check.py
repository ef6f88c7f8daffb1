"""Whether a composed config can be run, as far as the config alone tells; imports no torch."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from resnet_lab.config.compose import typed
from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import RULES, _whole
from resnet_lab.models import family
from resnet_lab.trust import (
    check_targets,
    check_trust,
)

PRETRAINED = "resnet_lab.models.pretrained.Pretrained"


EXTRAS = {"wandb", "mlflow"}  # loggers whose packages are optional extras of ours


def _plain(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    return value


def check(cfg: DictConfig) -> None:
    """Raise ValueError, a line for each thing that this composed config gets wrong.

    All that the config alone tells: what may not be asked for (see `trust`), types, ranges,
    impossible networks, values that contradict each other. What only the data or the machine can
    tell is left to `build.build`.
    """
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    if content.pop("hydra", None) is not None:  # a run's, with the command line at hand
        check_trust(cfg, typed(cfg, "task"))
        if content["run_dir"] != "${hydra:runtime.output_dir}":
            raise UserError(
                f"run_dir={content['run_dir']}: it is the folder that hydra.run.dir names; give "
                "hydra.run.dir=..."
            )
    missing = sorted(_missing(content))
    faults = [f"{key} has no default: give {key}=..." for key in missing]
    for key, (holds, allowed) in RULES.items():
        if key in missing or OmegaConf.select(cfg, key, default=_ABSENT) is _ABSENT:
            continue
        value = _plain(cfg, key)
        if not holds(value):
            faults.append(f"{key}={_spelled(value)}: must be {allowed}.")
    if not faults:
        check_targets(content, cfg.get("trust") or ())
        faults = list(_contradictions(cfg))
    if faults:
        raise UserError("\n".join(faults))


_ABSENT = object()


def _missing(node: Any, key: str = "") -> Iterator[str]:
    # OmegaConf.missing_keys would resolve interpolations, and run_dir is not known yet.
    if node == "???":
        yield key
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from _missing(child, f"{key}.{name}" if key else str(name))


def _spelled(value: Any) -> str:
    """As one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(_spelled, value)) + "]"
    return str(value)


def _contradictions(cfg: DictConfig) -> Iterator[str]:
    # An experiment may be a sweep; a single run, and each job of a sweep, is one point of it.
    swept = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    given = {override.partition("=")[0] for override in typed(cfg, "task")} if swept else ()
    if left := [key for key in map(str, swept) if key not in given]:
        yield (
            f"This experiment is a sweep over {', '.join(left)}: run it by itself with -m, or give "
            "each of them one value."
        )

    model = _plain(cfg, "model")
    data_classes, model_classes = cfg.data.num_classes, model.get("num_classes")
    if data_classes is not None and model_classes is not None and data_classes != model_classes:
        yield (
            f"model.num_classes={model_classes}: the data has {data_classes} classes "
            "(data.num_classes); leave model.num_classes out, it follows the data."
        )
    try:
        family.check(model["_target_"], {k: v for k, v in model.items() if k != "_target_"})
    except UserError as error:
        yield f"model.{error}"

    try:
        trunk_run(cfg)
    except UserError as error:
        yield str(error)

    root = cfg.data.get("root")
    if _plain(cfg, "data.source._target_").endswith(".ImageFolder"):
        for folder in (Path(root), Path(root, "train"), Path(root, "test")):
            if not folder.is_dir():
                yield (
                    f"data.root={root}: there is no folder {folder}; data.root must hold train/ "
                    "and test/ (and may hold val/), each with one folder of images per class."
                )
                break

    trainer = cfg.trainer
    ranks = _plain(cfg, "trainer.devices")
    ranks = len(ranks) if isinstance(ranks, list) else ranks
    if _whole(ranks) and ranks > 0:
        ranks *= trainer.num_nodes
        if cfg.data.batch_size % ranks:
            yield undivided(cfg.data.batch_size, ranks)
    if (trainer.max_epochs or -1) < 1 and trainer.max_steps < 1 and not trainer.fast_dev_run:
        yield "trainer.max_epochs and trainer.max_steps are both without limit: set one of them."
    optimizer = cfg.optimizer
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        yield "optimizer.nesterov=true: needs optimizer.momentum above 0."
    if cfg.scheduler.get("unit") == "run":
        for key in ("milestones", "warmup"):
            value = _plain(cfg, f"scheduler.{key}") or 0
            if max(value if isinstance(value, list) else [value]) >= 1:
                yield (
                    f"scheduler.{key}={_spelled(value)}: with scheduler.unit=run these are "
                    "fractions of the run, below 1; for others set scheduler.unit=epoch or step."
                )
    for name in EXTRAS & set(cfg.logger or ()):
        if importlib.util.find_spec(name) is None:
            yield f"logger={name}: the package {name} is missing; pip install -e '.[{name}]'."
    size = cfg.data.image_size
    if size is not None and cfg.data.cutout > size:
        yield f"data.cutout={cfg.data.cutout}: larger than the image ({size} pixels)."


def trunk_run(cfg: DictConfig) -> DictConfig | None:
    """The config of the run whose folder `model.trunk` names; None where it names none.

    ValueError where that folder holds no run, or its net is not trusted: what a stranger's config
    names as a net would be called.
    """
    trunk = OmegaConf.select(cfg, "model.trunk")
    if cfg.model._target_ != PRETRAINED or not isinstance(trunk, str):
        return None
    described = Path(trunk, "config.yaml")
    if not described.exists():
        if "/" in trunk:
            raise UserError(f"model.trunk={trunk}: there is no run in it (no config.yaml).")
        return None
    run = OmegaConf.load(described)
    if any(OmegaConf.select(run, key) is None for key in ("model._target_", "data")):
        raise UserError(f"model.trunk={trunk}: {described} is not the config of a run.")
    written: Any = OmegaConf.to_container(run)  # as text: nothing of it is resolved yet
    model, data = written["model"], written["data"]
    taken = {
        "model": model.get("trunk") if model["_target_"] == PRETRAINED else model,
        "data": {key: data.get(key) for key in ("image_size", "mean", "std")},
    }
    try:
        check_targets(taken, cfg.get("trust") or (), foreign=True)
    except UserError as error:
        raise UserError(f"model.trunk={trunk}: {error}") from None
    assert isinstance(run, DictConfig)
    return run


def undivided(batch_size: int, ranks: int) -> str:
    """The sentence for a global batch that cannot be dealt out evenly."""
    lower = batch_size // ranks * ranks
    nearest = f"{lower} or {lower + ranks}" if lower else f"{lower + ranks}"
    return (
        f"data.batch_size={batch_size}: the global batch is dealt out evenly, and {ranks} devices "
        f"do not divide it; use {nearest}."
    )
