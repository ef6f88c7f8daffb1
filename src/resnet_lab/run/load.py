"""A finished run, ready for use."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch import nn

from resnet_lab.classifier import Classifier
from resnet_lab.config import untrusted
from resnet_lab.config.check import check
from resnet_lab.config.compose import CONF, pasted
from resnet_lab.config.errors import UserError
from resnet_lab.config.options import choices_of
from resnet_lab.config.rules import net_faults
from resnet_lab.config.suggest import offer
from resnet_lab.data.datamodule import ImageDataModule
from resnet_lab.run import checkpoint_io
from resnet_lab.run.build import build_classifier, build_data, build_net
from resnet_lab.run.folder import SECTIONS, RunFolder, check_trusted, keep_at_home
from resnet_lab.run.machine import allow_tf32, keep_freed_memory, on_cuda


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
    accelerator: str = "auto",
) -> Finished:
    """The run in `run_dir`, from this folder alone, with the weights that training chose.

    Args:
        checkpoint: other weights of the same net; a run that is not finished needs to have it
            named.
        overrides: key=value for keys of its config below data and trainer. The trainer's
            accelerator is auto and devices 1 before they are applied: the machine may be another.
        trust: packages that its config may name besides `untrusted.NAMES`.
        accelerator: of the trainer. Unlike an override it asks for no data: images to predict need
            none.

    Returns:
        The net is in evaluation mode, on the CPU.

    Raises:
        UserError: the folder is no run, asks for what it may not, or has no weights that fit.
    """
    folder = RunFolder(run_dir)
    folder.refuse_links()
    # What is made for training alone, callbacks and loggers, is left out.
    own = {k: v for k, v in folder.read_config().items() if k in (*SECTIONS, "seed")}
    own |= {"callbacks": {}, "logger": {}}
    own["trainer"] |= {
        **{"accelerator": accelerator, "devices": 1, "num_nodes": 1, "strategy": "auto"},
        **{"profiler": None, "default_root_dir": None},
    }
    typed = apply_overrides(own, overrides, ("data", "trainer"))
    keep_at_home(own, typed, OmegaConf.load(CONF / "train.yaml").data.cache_dir)
    untrusted.check_values(own, folder.config)
    check_trusted(own, folder.config, trust)
    if faults := list(net_faults(own["model"])):
        raise UserError(f"{folder.config}: {' '.join(faults)}")
    cfg = OmegaConf.create(own)
    if overrides:
        check(cfg, training=False)
    result = folder.read_result()
    names = result.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        result.pop("class_names", None)  # earlier runs did not keep them
    checkpoint = checkpoint or _chosen(folder, str(result.get("status", "without a result.json")))

    keep_freed_memory()
    if on_cuda(cfg.trainer.accelerator):
        allow_tf32(True)  # as in training
    weights = checkpoint_io.load_weights(checkpoint)
    net = build_net(cfg)
    classifier = build_classifier(cfg, net)
    expected = classifier.state_dict()
    strange = sorted(expected.keys() ^ weights.keys()) or [
        name for name, value in expected.items() if value.shape != weights[name].shape
    ]
    if strange:
        raise UserError(
            f"{checkpoint} does not fit the net of {folder.config}: {strange[0]} is "
            f"missing in one of them or has another shape ({len(strange)} such in all); it belongs "
            "to another run."
        )
    classifier.load_state_dict(weights)
    return Finished(
        run_dir,
        cfg,
        build_data(cfg),
        net,
        classifier.eval(),
        checkpoint,
        result.get("class_names") or [str(number) for number in range(cfg.data.num_classes)],
        result,
    )


def _chosen(folder: RunFolder, status: str) -> Path:
    """The weights that speak for a run: those of its best epoch, else of its last one."""
    best = folder.own_best()
    if folder.last.is_file() and not best.is_file() and "best_checkpoint" in folder.read_result():
        raise UserError(
            f"{folder}: its best checkpoint {best} is not there; put it back, or name other "
            f"weights, --checkpoint {shlex.quote(str(folder.last))} for the last ones."
        )
    found = [path for path in (best, folder.last) if path.is_file()]
    if not found:
        raise UserError(f"{folder}: it has no checkpoint (the run is {status}); train it again.")
    if status != "finished":
        raise UserError(
            f"{folder}: this run is {status}, not finished, so its best weights are not settled; "
            f"resume it ({pasted('resume', str(folder))}) or say --checkpoint "
            f"{shlex.quote(str(found[0]))}."
        )
    return found[0]


def apply_overrides(
    config: dict[str, Any], overrides: Sequence[str], groups: Sequence[str]
) -> set[str]:
    """Set key=value in the config of a run, for keys that are there and lie below `groups`.

    `data=NAME` takes the source of conf/data/NAME.yaml; size, mean and std stay the run's own. A
    value that the config leaves to an environment variable can be set wherever it is.

    Returns:
        The keys that are set.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    typed = set()
    for override in sorted(parsed, key=lambda o: o.key_or_group != "data"):
        key, value = override.key_or_group, override.value()
        *parents, last = key.split(".")
        if override.is_add() or override.is_delete() or override.is_sweep_override():
            raise UserError(f"{override.input_line}: only key=value can be given here.")
        data = config["data"]
        if key == "data" and key in groups:
            if value not in choices_of("data"):
                possible = offer(str(value), choices_of("data"))
                raise UserError(f"data={value}: there is no such choice; {possible}")
            chosen: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / f"{value}.yaml"))
            data["root"] = chosen.get("root")
            data["test_split"] = chosen.get("test_split", "test")
            places = {key: data[key] for key in ("root", "cache_dir", "test_split")}
            data["source"] = {k: places.get(k, v) for k, v in chosen["source"].items()}
            typed.add("data.root")
            continue
        node: Any = config
        for name in parents:
            node = node.get(name) if isinstance(node, dict) else None
        left_open = isinstance(node, dict) and "${" in str(node.get(last))
        if not left_open and (not parents or parents[0] not in groups):
            raise UserError(
                f"{key}: cannot be changed here, only what lies below {' and '.join(groups)}."
            )
        if not isinstance(node, dict):
            raise UserError(f"{key}: there is no such key.")
        if last not in node:
            keys = sorted(str(k) for k in node if not str(k).startswith("_"))
            raise UserError(f"{key}: there is no such key; {offer(last, keys)}")
        node[last] = value
        typed.add(key)
        if key in ("data.root", "data.cache_dir", "data.test_split") and last in (
            data.get("source") or {}
        ):
            data["source"][last] = value  # in a run's config nothing refers to anything else
    return typed
