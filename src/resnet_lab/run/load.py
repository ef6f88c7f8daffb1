"""A finished run, ready for use."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from resnet_lab.classifier import Classifier
from resnet_lab.config.check import check
from resnet_lab.config.compose import CONF
from resnet_lab.config.errors import UserError
from resnet_lab.config.messages import _choices, _offer
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.run import checkpoint_io
from resnet_lab.run.build import _classifier
from resnet_lab.run.folder import _told, run_config
from resnet_lab.run.machine import keep_freed_memory, on_cuda
from resnet_lab.trust import (
    check_definitions,
    check_targets,
)


def apply_overrides(cfg: DictConfig, overrides: Sequence[str], groups: Sequence[str]) -> None:
    """Set key=value in the config of a run, for keys that are there and lie below `groups`.

    `data=NAME` takes the source of conf/data/NAME.yaml; size, mean and std stay the run's own.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in sorted(parsed, key=lambda o: o.key_or_group != "data"):
        key, value = override.key_or_group, override.value()
        parent, _, last = key.rpartition(".")
        if override.is_add() or override.is_delete() or override.is_sweep_override():
            raise UserError(f"{override.input_line}: only key=value can be given here.")
        if key == "data" and key in groups:
            if value not in _choices("data"):
                raise UserError(
                    f"data={value}: there is no such choice; {_offer(str(value), _choices('data'))}"
                )
            choice: Any = OmegaConf.load(CONF / "data" / f"{value}.yaml")
            cfg.data.source, cfg.data.root = choice.source, choice.get("root")
            continue
        written = OmegaConf.to_container(cfg)
        for part in key.split("."):
            written = written.get(part) if isinstance(written, dict) else None
        left_open = isinstance(written, str) and "${" in written  # only the user can say it
        if not left_open and (not parent or key.split(".")[0] not in groups):
            raise UserError(
                f"{key}: cannot be changed here, only what lies below {' and '.join(groups)}."
            )
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(node, DictConfig):
            raise UserError(f"{key}: there is no such key.")
        if last not in node:
            keys = sorted(str(k) for k in node if not str(k).startswith("_"))
            raise UserError(f"{key}: there is no such key; {_offer(last, keys)}")
        node[last] = value
        if key in ("data.root", "data.cache_dir") and last in cfg.data.source:
            cfg.data.source[last] = value  # a run's config is resolved: no interpolation follows


@dataclass
class Finished:
    """A run folder, ready for use: `net`, in `classifier`, has the weights of `checkpoint`.

    `class_names` are those of its data, in the order of the logits; `result` is its result.json.
    Of the data nothing was read: `datamodule` waits for its `setup`.
    """

    run_dir: Path
    cfg: DictConfig
    datamodule: ImageDataModule
    net: nn.Module
    classifier: Classifier
    checkpoint: Path
    class_names: list[str]
    result: dict[str, Any]


def load_run(
    run_dir: Path,
    checkpoint: Path | None = None,
    overrides: Sequence[str] = (),
    trust: Sequence[str] = (),
) -> Finished:
    """The run in `run_dir`, from this folder alone, with the weights that training chose.

    checkpoint: other weights of the same net; a run that is not finished needs to have it named.
    overrides: key=value for keys of its config below data and trainer. The trainer's accelerator
        is auto and devices 1 before they are applied: the machine may be another one.
    trust: packages besides ours that its config may name; see `check_targets`.

    ValueError, a sentence, where the folder is no run, asks for what `check_targets` refuses, or
    has no weights that fit its net. The net is in evaluation mode, on the CPU.
    """
    cfg = run_config(run_dir)
    for part in ("callbacks", "logger"):  # made for training alone, so they may say what they like
        cfg[part] = {}
    result = _told(run_dir / "result.json")
    checkpoint = checkpoint or _chosen(run_dir, result.get("status", "without a result.json"))
    cfg.trainer.update(accelerator="auto", devices=1, num_nodes=1)
    if overrides:
        apply_overrides(cfg, overrides, ("data", "trainer"))
    cfg.trust = list(trust)
    check_targets(cfg, trust, foreign=True)
    check_definitions(cfg, trust)
    if overrides:
        check(cfg)

    keep_freed_memory()
    if on_cuda(cfg.trainer.accelerator):
        torch.set_float32_matmul_precision("high")  # as in training
    weights = checkpoint_io.load_weights(checkpoint)
    net: nn.Module = instantiate(cfg.model).to(memory_format=torch.channels_last)
    classifier = _classifier(cfg, net)
    expected = classifier.state_dict()
    strange = sorted(expected.keys() ^ weights.keys()) or [
        name for name, value in expected.items() if value.shape != weights[name].shape
    ]
    if strange:
        raise UserError(
            f"{checkpoint} does not fit the net of {run_dir / 'config.yaml'}: {strange[0]} is "
            f"missing in one of them or has another shape ({len(strange)} such in all); it belongs "
            "to another run."
        )
    classifier.load_state_dict(weights)
    return Finished(
        run_dir,
        cfg,
        instantiate(cfg.data, _convert_="all"),
        net,
        classifier.eval(),
        checkpoint,
        result.get("class_names") or [str(number) for number in range(cfg.data.num_classes)],
        result,
    )


def _chosen(run_dir: Path, status: str) -> Path:
    """The weights that speak for a run: those of its best epoch, else of its last one."""
    found = [
        path
        for name in ("best", "last")
        if (path := run_dir / "checkpoints" / f"{name}.ckpt").is_file()
    ]
    if not found:
        raise UserError(f"{run_dir}: it has no checkpoint (the run is {status}); train it again.")
    if status != "finished":
        raise UserError(
            f"{run_dir}: this run is {status}, not finished, so its best weights are not settled; "
            f"go on with it (resume={run_dir}) or say --checkpoint {found[0]}."
        )
    return found[0]
