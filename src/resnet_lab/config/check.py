"""Whether a composed config can be run, as far as the config alone tells; imports no torch."""

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from resnet_lab.config.compose import absolute, typed
from resnet_lab.config.errors import UserError
from resnet_lab.config.rules import NETS, net_faults, plain, spelled, value_faults
from resnet_lab.config.untrusted import check_names, check_values, read_yaml

PRETRAINED = "resnet_lab.models.pretrained.Pretrained"


EXTRAS = {"wandb", "mlflow"}  # loggers whose packages are optional extras of ours
OPTIM = {"timm", "schedulefree"}  # packages of the extra [optim]


def check(cfg: DictConfig, training: bool = True) -> None:
    """Raise UserError, a line for each thing that this composed config gets wrong.

    All that the config alone tells: types, ranges, impossible networks, values that contradict
    each other. What only the data or the machine can tell is left to `run.build`.

    Args:
        training: whether an image folder must hold train/ and test/; evaluation needs one of them.
    """
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    of_hydra = content.pop("hydra", None) is not None
    if of_hydra and content["run_dir"] != "${hydra:runtime.output_dir}":
        raise UserError(
            f"run_dir={content['run_dir']}: it is the folder that hydra.run.dir names; give "
            "hydra.run.dir=..."
        )
    missing = sorted(_missing(content))
    faults = [f"{key} has no default: give {key}=..." for key in missing]
    faults += value_faults(cfg, missing)
    if not faults:
        faults = list(_contradictions(cfg, training))
    if faults:
        raise UserError("\n".join(faults))


def _missing(node: Any, key: str = "") -> Iterator[str]:
    # OmegaConf.missing_keys would resolve interpolations, and run_dir is not known yet.
    if node == "???":
        yield key
    elif isinstance(node, dict):
        for name, child in node.items():
            yield from _missing(child, f"{key}.{name}" if key else str(name))


def _contradictions(cfg: DictConfig, training: bool) -> Iterator[str]:
    # An experiment may be a sweep; a single run, and each job of a sweep, is one point of it.
    swept = OmegaConf.select(cfg, "hydra.sweeper.params") or {}
    given = {override.partition("=")[0] for override in typed(cfg, "task")} if swept else ()
    if left := [key for key in map(str, swept) if key not in given]:
        yield (
            f"This experiment is a sweep over {', '.join(left)}: run it by itself with -m, or give "
            "each of them one value."
        )

    model = plain(cfg, "model")
    data_classes, model_classes = cfg.data.num_classes, model.get("num_classes")
    if data_classes is not None and model_classes is not None and data_classes != model_classes:
        yield (
            f"model.num_classes={model_classes}: the data has {data_classes} classes "
            "(data.num_classes); leave model.num_classes out, it follows the data."
        )
    yield from net_faults(model)
    channels = cfg.data.get("channels", 3)
    if (taken := model.get("in_channels", 3)) != channels and model["_target_"] in NETS:
        yield (
            f"model.in_channels={taken}: the images have {channels} (data.channels=1 makes them "
            "gray)."
            if "in_channels" in model
            else f"data.channels={channels}: this net takes images of {taken} channels."
        )
    for name in ("mean", "std"):
        if cfg.data[name] is not None and len(cfg.data[name]) != channels:
            yield f"data.{name} has {len(cfg.data[name])} numbers for {channels} channels."

    try:
        trunk_run(cfg)
    except UserError as error:
        yield str(error)

    root = cfg.data.get("root")
    source = cfg.data.get("source") or {}
    if root is not None and source and "root" not in source:
        yield f"data.root={root}: these images come from no folder; data=imagefolder reads one."
    if str(source.get("_target_")).endswith(".ImageFolder"):
        needed = ["", "train"]
        if cfg.data.get("test_size") is None:
            needed.append(cfg.data.get("test_split") or "test")
        for folder in (Path(absolute(root), name) for name in (needed if training else [""])):
            if not folder.is_dir():
                yield (
                    f"data.root={root}: there is no folder {folder}; data.root must hold train/ "
                    "and test/ (and may hold val/), each with one folder of images per class. "
                    "Without test/: data.test_size=0.1, or data.test_split=val. Without both: "
                    "resnet-lab split FOLDER makes them."
                )
                break

    trainer = cfg.trainer
    ranks = plain(cfg, "trainer.devices")
    ranks = len(ranks) if isinstance(ranks, list) else ranks
    if isinstance(ranks, int) and ranks > 0:
        ranks *= trainer.num_nodes
        if cfg.data.batch_size % ranks:
            yield undivided(cfg.data.batch_size, ranks)
    if (trainer.max_epochs or -1) < 1 and trainer.max_steps < 1 and not trainer.fast_dev_run:
        yield "trainer.max_epochs and trainer.max_steps are both without limit: set one of them."
    optimizer = cfg.optimizer
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        yield "optimizer.nesterov=true: needs optimizer.momentum above 0."
    if str(cfg.optimizer._target_).endswith(".LBFGS"):
        yield (
            "optimizer._target_=torch.optim.LBFGS: takes each step from many passes over a batch, "
            "which this training does not do; take another optimizer."
        )
    yield from _optimizer_faults(cfg)
    if cfg.scheduler.get("unit") == "run":
        for key in ("milestones", "warmup"):
            value = cfg.scheduler.get(key) or 0
            value = list(value) if isinstance(value, ListConfig) else value
            if max(value if isinstance(value, list) else [value]) >= 1:
                yield (
                    f"scheduler.{key}={spelled(value)}: with scheduler.unit=run these are "
                    "fractions of the run, below 1; for others set scheduler.unit=epoch or step."
                )
    for name in EXTRAS & set(cfg.get("logger") or ()):
        if importlib.util.find_spec(name) is None:
            yield f"logger={name}: the package {name} is missing; pip install -e '.[{name}]'."
    size = cfg.data.image_size
    if size is not None and cfg.data.cutout > size:
        yield f"data.cutout={cfg.data.cutout}: larger than the image ({size} pixels)."
    yield from _augmentation_faults(cfg, model)


def _optimizer_faults(cfg: DictConfig) -> Iterator[str]:
    target = str(cfg.optimizer._target_)
    choice = f"optimizer={OmegaConf.select(cfg, 'hydra.runtime.choices.optimizer') or target}"
    if package := missing_package(cfg):
        yield f"{choice}: the package {package} is missing; pip install -e '.[optim]'."
    if target.startswith("schedulefree."):
        schedule = str(cfg.scheduler._target_)
        if schedule.startswith("resnet_lab.schedule.") and not schedule.endswith(".constant"):
            yield (
                f"{choice}: its average of the weights stands in for a falling learning rate, as "
                f"{schedule} has; use scheduler=constant."
            )
        if cfg.optimizer.get("momentum") == 0:
            yield f"optimizer.momentum=0: {choice} needs one above 0."
    if target == "resnet_lab.optim.SAM":
        if str(cfg.trainer.precision) == "16-mixed":
            yield (
                f"{choice}: takes two passes a step, and the loss scaler of trainer.precision="
                "16-mixed allows one; use bf16-mixed or 32."
            )
        if cfg.trainer.accumulate_grad_batches > 1:
            yield (
                f"{choice}: takes both passes of a step over one batch; leave "
                "trainer.accumulate_grad_batches out, and set data.batch_size."
            )


def missing_package(cfg: DictConfig) -> str | None:
    """The package of the extra [optim] that the optimizer comes from, where it is not installed."""
    package = str(cfg.optimizer._target_).partition(".")[0]
    return package if package in OPTIM and importlib.util.find_spec(package) is None else None


def _augmentation_faults(cfg: DictConfig, model: dict[str, Any]) -> Iterator[str]:
    data = plain(cfg, "data")
    augment = data.get("augment") or {}
    batch, size = data["batch_size"], data["image_size"]
    for name in ("mixup", "cutmix"):
        if augment.get(name) and batch < 2:
            yield f"data.augment.{name}={augment[name]}: mixes images of a batch; it has one alone."
    repeats = augment.get("repeats", 1)
    if repeats > batch:
        yield f"data.augment.repeats={repeats}: more than the images of a batch ({batch})."
    if repeats > 1 and data.get("balance"):
        yield "data.augment.repeats and data.balance both say how often an image is seen: take one."
    if sides := data.get("resize"):
        if str(model["_target_"]).startswith("resnet_lab.models.classic."):
            yield "data.resize: the head of this net fits images of one size alone; leave it out."
        if len(sides) > 1 and size is not None and sides[-1][1] != size:
            yield (
                f"data.resize={spelled(sides)}: ends at {sides[-1][1]} pixels and the test is at "
                f"{size} (data.image_size); end at {size}, or give one side for the whole training."
            )
    classifier = plain(cfg, "classifier")
    if classifier.get("bce_threshold") and classifier.get("loss", "ce") != "bce":
        yield "classifier.bce_threshold: belongs to classifier.loss=bce."
    weights = classifier.get("class_weights")
    if isinstance(weights, list) and data["num_classes"] not in (None, len(weights)):
        yield (
            f"classifier.class_weights: {len(weights)} numbers for {data['num_classes']} classes."
        )


def trunk_run(cfg: DictConfig) -> dict[str, Any] | None:
    """The config of the run whose folder `model.trunk` names; None where it names none.

    Only its net and the size, mean and std of its images are given: plain values, and names that
    a run folder may give.

    Raises:
        UserError: the folder holds no run, or a net that may not be named.
    """
    trunk = OmegaConf.select(cfg, "model.trunk")
    if cfg.model._target_ != PRETRAINED or not isinstance(trunk, str):
        return None
    path = Path(trunk, "config.yaml")
    if not path.exists():
        if "/" in trunk:
            raise UserError(f"model.trunk={trunk}: there is no run in it (no config.yaml).")
        return None
    run = read_yaml(path)
    sections: list[Any] = [
        run.get(name) if isinstance(run, dict) else None for name in ("model", "data")
    ]
    if not all(isinstance(section, dict) for section in sections) or "_target_" not in sections[0]:
        raise UserError(f"model.trunk={trunk}: {path} is not the config of a run.")
    model, data = sections
    taken = {
        "model": model.get("trunk") if model["_target_"] == PRETRAINED else model,
        "data": {key: data.get(key) for key in ("image_size", "mean", "std")},
    }
    check_values(taken, path)
    how = "As the trunk of another run a net of your own is described: model.trunk={_target_: ...}."
    check_names(taken, path, (), how)
    if isinstance(taken["model"], dict) and (faults := list(net_faults(taken["model"]))):
        raise UserError(f"{path}: {' '.join(faults)}")
    return taken


def undivided(batch_size: int, ranks: int) -> str:
    """The sentence for a global batch that cannot be dealt out evenly."""
    lower = batch_size // ranks * ranks
    nearest = f"{lower} or {lower + ranks}" if lower else f"{lower + ranks}"
    return (
        f"data.batch_size={batch_size}: the global batch is dealt out evenly, and {ranks} devices "
        f"do not divide it; use {nearest}."
    )
