"""What a config may say, and one sentence for each thing it may not; imports no torch.

`CheckAndClaim` is the Hydra callback that runs before every single run: it checks the composed
config and gives the run a folder of its own. `composition_errors` and `one_sentence_errors` stand
around Hydra and around the run, and turn mistakes into messages.
"""

import difflib
import importlib
import importlib.util
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from resnet_lab import ranks
from resnet_lab.models import family
from resnet_lab.resume import (
    FREE,
    LENGTH,
    OF_THE_COMMAND,
    changes,
    flat,
    key_of,
    moved,
    of_the_command,
    within,
)
from resnet_lab.trust import (
    NAME,
    check_hydra,
    check_targets,
    check_trust,
    given_trust,
    resolved_at,
)

SOURCE_FOLDER = Path(__file__).resolve().parent
CONF = SOURCE_FOLDER.parents[1] / "conf"

GROUPS = {path.name for path in CONF.glob("*/")}

PRETRAINED = "resnet_lab.models.pretrained.Pretrained"
EXTRAS = {"wandb", "mlflow"}  # loggers whose packages are optional extras of ours
PRECISIONS = ("auto", "32", "bf16-mixed", "16-mixed", "64", "bf16-true", "16-true", "32-true")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(_whole(v) and v >= 0 for v in value)
    return value == "auto" or value == -1 or (_whole(value) and value >= 1)


Rule = tuple[Callable[[Any], bool], str]

_POSITIVE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
_NOT_NEGATIVE: Rule = (lambda v: _number(v) and v >= 0, "a number of 0 or more")
_SHARE: Rule = (lambda v: _number(v) and 0 <= v < 1, "a number from 0 to below 1")
_COUNT: Rule = (lambda v: _whole(v) and v >= 1, "a whole number of 1 or more")
_WHOLE: Rule = (lambda v: _whole(v) and v >= 0, "a whole number of 0 or more")
_YES_NO: Rule = (lambda v: isinstance(v, bool), "true or false")
_TRIPLE: Rule = (
    lambda v: isinstance(v, list) and len(v) == 3 and all(_number(x) for x in v),
    "three numbers such as [0.49, 0.48, 0.45], one for each of red, green and blue",
)
_PART: Rule = (
    lambda v: (_whole(v) and v >= 0) or (isinstance(v, float) and 0 <= v <= 1),
    "a share from 0.0 to 1.0 or a whole number of batches",
)


def _reference(value: Any) -> bool:
    if isinstance(value, dict):
        figures = value.keys() & {"test_error", "test_acc"}
        known = value.keys() <= {"test_error", "test_acc", "data", "source"}
        return known and len(figures) == 1 and _number(value[figures.pop()])
    return value is None or _number(value)


def _one_of(*choices: str) -> Rule:
    return lambda v: v in choices, "one of " + ", ".join(choices)


def _or_null(rule: Rule) -> Rule:
    holds, allowed = rule
    return lambda v: v is None or holds(v), allowed + ", or null"


RULES: dict[str, Rule] = {
    "rank_timeout": _POSITIVE,
    "callbacks.last.minutes": _NOT_NEGATIVE,
    "seed": (lambda v: _whole(v) and 0 <= v < 2**32, "a whole number from 0 to 4294967295"),
    "compile": (lambda v: isinstance(v, bool) or v == "auto", "true, false or auto"),
    "trust": (
        lambda v: isinstance(v, list) and all(NAME.fullmatch(str(name)) for name in v),
        "a list of packages or modules, such as [my_package]",
    ),
    "reference": (
        _reference,
        "a test error in percent, null, or a mapping such as "
        "{test_error: 8.75, data: cifar10, source: their paper} (or test_acc)",
    ),
    "classifier.label_smoothing": _SHARE,
    "classifier.decay_norm_and_bias": _YES_NO,
    "classifier.trunk_lr_scale": _POSITIVE,
    "model.freeze": (
        lambda v: v in ("all", "none") or (_whole(v) and v >= 1),
        "all, none or a number of stages from 1 on",
    ),
    "model.head": (
        lambda v: isinstance(v, list) and all(_whole(x) and x >= 1 for x in v),
        "a list of whole numbers of 1 or more, such as [4096,4096], or []",
    ),
    "model.dropout": _SHARE,
    "callbacks.unfreeze.after_epochs": _COUNT,
    "data.batch_size": _COUNT,
    "data.eval_batch_size": _or_null(_COUNT),
    "data.num_classes": _or_null((lambda v: _whole(v) and v >= 2, "a whole number of 2 or more")),
    "data.image_size": _or_null((lambda v: _whole(v) and v >= 8, "a whole number of 8 or more")),
    "data.train_size": _or_null(_COUNT),
    "data.val_size": (
        lambda v: _number(v) and (0 <= v < 1 or (_whole(v) and v >= 1)),
        "a share from 0 to below 1, or a whole number of images",
    ),
    "data.mean": _or_null(_TRIPLE),
    "data.std": _or_null(
        (lambda v: _TRIPLE[0](v) and all(x > 0 for x in v), _TRIPLE[1] + ", above 0")
    ),
    "data.crop_padding": _WHOLE,
    "data.flip": _YES_NO,
    "data.cutout": _WHOLE,
    "data.random_resized_crop": (
        lambda v: (
            isinstance(v, list)
            and len(v) == 2
            and all(_number(x) for x in v)
            and 0 < v[0] <= v[1] <= 1
        ),
        "the smallest and the largest share of the area, such as [0.08, 1.0]",
    ),
    "data.on_bad_image": _one_of("error", "skip"),
    "data.check": _or_null(_WHOLE),
    "data.workers": _or_null(_WHOLE),
    "data.worker_timeout": _COUNT,
    "data.memory_limit": _NOT_NEGATIVE,
    "optimizer.lr": _POSITIVE,
    "optimizer.momentum": _SHARE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.nesterov": _YES_NO,
    "optimizer.betas": (
        lambda v: isinstance(v, list) and len(v) == 2 and all(_SHARE[0](x) for x in v),
        "two numbers from 0 to below 1, such as [0.9, 0.999]",
    ),
    "scheduler.unit": _one_of("epoch", "step", "run"),
    "scheduler.milestones": (
        lambda v: (
            isinstance(v, list)
            and all(_number(x) and x > 0 for x in v)
            and all(a < b for a, b in itertools.pairwise(v))
        ),
        "a rising list of numbers above 0",
    ),
    "scheduler.gamma": _POSITIVE,
    "scheduler.warmup": _NOT_NEGATIVE,
    "scheduler.warmup_from": _NOT_NEGATIVE,
    "scheduler.warmup_shape": _one_of("linear", "constant"),
    "scheduler.peak": (lambda v: _number(v) and 0 < v < 1, "a number between 0 and 1"),
    "scheduler.start": _NOT_NEGATIVE,
    "scheduler.final": _NOT_NEGATIVE,
    "trainer.accelerator": _one_of("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": (_devices, "a whole number of 1 or more, a list like [0,1], or auto"),
    "trainer.num_nodes": _COUNT,
    "trainer.precision": (
        lambda v: str(v) in PRECISIONS and not isinstance(v, bool),
        "one of " + ", ".join(PRECISIONS),
    ),
    "trainer.max_epochs": _or_null(
        (lambda v: _whole(v) and (v >= 1 or v == -1), "a whole number of 1 or more, -1")
    ),
    "trainer.max_steps": (
        lambda v: _whole(v) and (v >= 1 or v == -1),
        "a whole number of 1 or more, or -1 for no limit",
    ),
    "trainer.max_time": _or_null(
        (
            lambda v: re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(v)) is not None,
            "days, hours, minutes and seconds such as 00:11:30:00",
        )
    ),
    "trainer.accumulate_grad_batches": _COUNT,
    "trainer.gradient_clip_val": _or_null(_POSITIVE),
    "trainer.check_val_every_n_epoch": _COUNT,
    "trainer.log_every_n_steps": _COUNT,
    "trainer.limit_train_batches": _or_null(_PART),
    "trainer.limit_val_batches": _or_null(_PART),
    "trainer.limit_test_batches": _or_null(_PART),
    "trainer.fast_dev_run": (
        lambda v: isinstance(v, bool) or (_whole(v) and v >= 1),
        "true, false or a number of batches",
    ),
    "trainer.sync_batchnorm": _YES_NO,
    "sweep.name": (
        lambda v: re.fullmatch(r"[\w+=,-][\w.+=,-]*", str(v)) is not None,
        "a name for a folder, of letters, digits and . + = , - _",
    ),
    "sweep.jobs": (lambda v: v == "auto" or (_whole(v) and v >= 1), "1 or more, or auto"),
    "sweep.devices_per_job": _or_null(_COUNT),
    "sweep.on_error": _one_of("continue", "stop"),
    "sweep.retries": _WHOLE,
    "sweep.halving": _or_null(
        (lambda v: _number(v) and 2 <= v < float("inf"), "a number of 2 or more")
    ),
    "sweep.force": _YES_NO,
    "sweep.plan": _YES_NO,
    "sweep.warm": _YES_NO,
}


def _plain(cfg: DictConfig, key: str) -> Any:
    value = OmegaConf.select(cfg, key)
    if isinstance(value, DictConfig | ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    return value


def composed(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """What `python train.py` with these overrides would run, and the choice of every group.

    Nothing but `trust` is checked yet, and `run_dir` is left to be set. ValueError where an
    override gives several values, else Hydra's own errors.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.is_sweep_override():
            raise ValueError(f"{override.input_line}: give one value alone.")
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


def check(cfg: DictConfig) -> None:
    """Raise ValueError, a line for each thing that this composed config gets wrong.

    All that the config alone tells: what may not be asked for (see `trust`), types, ranges,
    impossible networks, values that contradict each other. What only the data or the machine can
    tell is left to `experiment.build`.
    """
    content = OmegaConf.to_container(cfg)
    assert isinstance(content, dict)
    if content.pop("hydra", None) is not None:  # a run's, with the command line at hand
        check_trust(cfg, typed(cfg, "task"))
        if content["run_dir"] != "${hydra:runtime.output_dir}":
            raise ValueError(
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
        raise ValueError("\n".join(faults))


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
    except ValueError as error:
        yield f"model.{error}"

    try:
        trunk_run(cfg)
    except ValueError as error:
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
            raise ValueError(f"model.trunk={trunk}: there is no run in it (no config.yaml).")
        return None
    run = OmegaConf.load(described)
    if any(OmegaConf.select(run, key) is None for key in ("model._target_", "data")):
        raise ValueError(f"model.trunk={trunk}: {described} is not the config of a run.")
    written: Any = OmegaConf.to_container(run)  # as text: nothing of it is resolved yet
    model, data = written["model"], written["data"]
    taken = {
        "model": model.get("trunk") if model["_target_"] == PRETRAINED else model,
        "data": {key: data.get(key) for key in ("image_size", "mean", "std")},
    }
    try:
        check_targets(taken, cfg.get("trust") or (), foreign=True)
    except ValueError as error:
        raise ValueError(f"model.trunk={trunk}: {error}") from None
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


def apply_overrides(cfg: DictConfig, overrides: Sequence[str], groups: Sequence[str]) -> None:
    """Set key=value in the config of a run, for keys that are there and lie below `groups`.

    `data=NAME` takes the source of conf/data/NAME.yaml; size, mean and std stay the run's own.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in sorted(parsed, key=lambda o: o.key_or_group != "data"):
        key, value = override.key_or_group, override.value()
        parent, _, last = key.rpartition(".")
        if override.is_add() or override.is_delete() or override.is_sweep_override():
            raise ValueError(f"{override.input_line}: only key=value can be given here.")
        if key == "data" and key in groups:
            if value not in _choices("data"):
                raise ValueError(
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
            raise ValueError(
                f"{key}: cannot be changed here, only what lies below {' and '.join(groups)}."
            )
        node = OmegaConf.select(cfg, parent) if parent else cfg
        if not isinstance(node, DictConfig):
            raise ValueError(f"{key}: there is no such key.")
        if last not in node:
            keys = sorted(str(k) for k in node if not str(k).startswith("_"))
            raise ValueError(f"{key}: there is no such key; {_offer(last, keys)}")
        node[last] = value
        if key in ("data.root", "data.cache_dir") and last in cfg.data.source:
            cfg.data.source[last] = value  # a run's config is resolved: no interpolation follows


class CheckAndClaim(Callback):
    """Before a single run: check the config, then make its folder, which no other run can have.

    The folder's name holds the second; when two runs start in the same one, the later gets -2.
    A folder that the user names must not hold a run already. Where torchrun or SLURM's srun has
    started the processes of a run, on one machine or several, all of them get the same folder,
    and the first of them alone logs into it; begun again by those two, the run goes on there.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra turns exceptions of callbacks into warnings, but lets SystemExit pass.
        try:
            if config.get("resume"):
                go_on(config, Path(config.resume))
            else:
                check(config)
                folder = folder_of(config)
                if ranks.started_again() and _has_checkpoint(folder):
                    go_on(config, folder)
                else:
                    OmegaConf.set_readonly(config.hydra, False)
                    config.hydra.run.dir = str(folder)
            if not ranks.is_first():
                _log_to_the_screen_alone(config)
        except Exception as error:
            message = str(error) if isinstance(error, ValueError | OSError) else sentence(error)
            if message is None or _wanted():
                traceback.print_exc()
            raise SystemExit(f"error: {message or error}") from None


def folder_of(config: DictConfig) -> Path:
    """The run's folder, claimed by the first of its processes and the same for all of them.

    ValueError where it holds a run already, or where it cannot be agreed on.
    """
    folder = Path(config.hydra.run.dir)
    named = any(o.startswith("hydra.run.dir=") for o in typed(config, "hydra"))
    if not named and ranks.by_torchrun():
        from resnet_lab.rendezvous import folder_of_all  # imports torch

        return folder_of_all((lambda: claim(folder)) if ranks.is_first() else None)
    if not named and ranks.by_srun():
        choices = config.hydra.runtime.choices
        name = f"{ranks.job_step()}-{choices.model}-{choices.data}"
        folder = Path("outputs", "runs", "slurm", name)  # a requeued job finds it again
    if ranks.is_first() and not (ranks.started_again() and folder.exists()):
        return claim(folder, named or ranks.count() > 1)
    return folder


def _log_to_the_screen_alone(config: DictConfig) -> None:
    """run.log and .hydra/ are the first process's; who starts the others keeps what they print."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        logging = config.hydra.job_logging
        if logging is not None and "file" in (logging.get("handlers") or {}):
            del logging.handlers.file
            logging.root.handlers = [name for name in logging.root.handlers if name != "file"]


def typed(config: DictConfig, kind: str) -> list[str]:
    """The overrides of the command line: "task" ours, "hydra" Hydra's own; what they
    interpolate (`${run_dir}`) stays as it was typed."""
    overrides: list[str] = OmegaConf.to_container(config.hydra.overrides[kind])  # type: ignore[assignment]
    return overrides


def go_on(config: DictConfig, run_dir: Path) -> None:
    """Turn `config` into that of the run in `run_dir`, to be continued there.

    What else is typed must be what the run has already, or among the things that do not change
    what it computes (see `resume`). `config` itself says what is new since the run was begun.

    Ends the process, with status 0, where that run is finished. ValueError where there is no
    run or no checkpoint, where its config asks for what is not trusted, or where a change is
    asked for that is not allowed; the change is shown.
    """
    others = [o for o in typed(config, "task") if not within(key_of(o), OF_THE_COMMAND)]
    trust = given_trust(typed(config, "task"))
    kept = run_dir / ".hydra" / "hydra.yaml"
    # As text: what is written there must not be resolved here.
    then: Any = OmegaConf.to_container(OmegaConf.load(kept)) if kept.exists() else None
    own = run_config(run_dir)
    if then is not None and others == _typed_then(then):
        others = []  # the command that has begun the run, once more
    new = _changes(run_dir, own, then, others) if others else {}
    longer = new.get(LENGTH, -1)
    try:
        status = json.loads((run_dir / "result.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        status = "unknown"
    if status == "finished" and longer == -1:
        print(f"{run_dir}: this run is finished; its result is in {run_dir / 'result.json'}")
        raise SystemExit(0)
    if not _has_checkpoint(run_dir):
        raise ValueError(f"resume={run_dir}: it has no checkpoint to go on from; start it anew.")

    folder = str(run_dir.absolute())
    for key, value in new.items():
        OmegaConf.update(own, key, value, force_add=True)
    before = own.get("run_dir")
    if isinstance(before, str):  # the folder may have been moved
        own = OmegaConf.create(moved(OmegaConf.to_container(own), before, folder))
    for today, saved in (  # settings that are newer than the run
        (config, own),
        (config.get("trainer"), own.trainer),
        (config.get("data"), own.data),
    ):
        settings: Any = OmegaConf.to_container(today) if today else {}
        for name, value in settings.items():
            if name != "hydra" and name not in saved:
                saved[name] = value
    own.resume = own.run_dir = folder
    own.trust = trust
    check_targets(own, trust, foreign=True)
    assert isinstance(own, DictConfig)
    check(own)

    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    for part in [part for part in config if part != "hydra"]:
        del config[part]
    config.update(own)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.run.dir = str(run_dir)
    config.hydra.output_subdir = None  # .hydra keeps what the run was started with
    if then is not None:  # what was chosen then, for result.json and the board
        config.hydra.overrides.task = [*then["hydra"]["overrides"]["task"], *others]
        config.hydra.runtime.choices = {
            group: choice
            for group, choice in then["hydra"]["runtime"]["choices"].items()
            if "${" not in str(choice)
        }


def _has_checkpoint(run_dir: Path) -> bool:
    """Whether there is something to go on from."""
    saved = (run_dir / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    return any(path.exists() for path in saved)


def _typed_then(then: Any) -> list[str]:
    """The overrides that a run was begun with, by its .hydra/hydra.yaml."""
    task = then["hydra"]["overrides"]["task"] if then else []
    return [override for override in task if not within(key_of(override), OF_THE_COMMAND)]


def run_config(run_dir: Path) -> DictConfig:
    """The config that the run in `run_dir` has left there; ValueError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir}: there is no run in it (no config.yaml).")
    try:
        cfg = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}") from error
    parts = ("model", "data", "classifier", "optimizer", "scheduler", "trainer")
    if not isinstance(cfg, DictConfig) or any(part not in cfg for part in parts):
        raise ValueError(f"{path} is not the config of a run (it needs {', '.join(parts)}).")
    return cfg


def _changes(run_dir: Path, own: DictConfig, then: Any, others: Sequence[str]) -> dict[str, Any]:
    """What the overrides `others` change in a run; ValueError where they may not."""
    began = _typed_then(then)
    keys = [key_of(override) for override in others]
    known = then is not None
    try:
        composed(began)
    except (HydraException, OmegaConfBaseException):  # of configs that are not here any more
        began, known = [], False
    if not known and not GROUPS.isdisjoint(keys):
        raise ValueError(
            f"resume={run_dir}: what it was begun with is not known here (.hydra/hydra.yaml), so "
            f"whole groups cannot be compared; leave out {' '.join(others)}."
        )
    configs = []
    for overrides in (began, [*began, *others]):
        cfg, _ = composed(overrides)
        cfg.run_dir = str(run_dir)
        written = flat(OmegaConf.to_container(cfg))  # type: ignore[arg-type]
        resolved = {
            key: resolved_at(cfg, key, text) if "${" in str(text) else text
            for key, text in written.items()
        }
        configs.append((written, resolved))
    try:
        sure = [key for key in keys if not known or within(key, (*FREE, LENGTH))]
        return changes(OmegaConf.to_container(own), *configs, sure)  # type: ignore
    except ValueError as error:
        raise ValueError(
            f"resume={run_dir}: the run goes on with its own config, and this would change it (run "
            f"-> asked for):\n  {error}\nLeave that out, or begin a new run."
        ) from None


def claim(folder: Path, named: bool = False) -> Path:
    """Make `folder` (or `folder`-2, -3, ... where it exists) and return it.

    `named`: the user chose it, so it is taken as it is. ValueError where it holds a run.
    """
    if named:
        if (folder / "config.yaml").exists():
            raise ValueError(f"hydra.run.dir={folder}: holds a run already; name another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for n in itertools.count(1):
        candidate = folder if n == 1 else folder.with_name(f"{folder.name}-{n}")
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError


_ours = False  # True while HYDRA_FULL_ERROR is set by composition_errors, not by the user


def _wanted() -> bool:
    """Whether the user asked for tracebacks."""
    return os.environ.get("HYDRA_FULL_ERROR") == "1" and not _ours


@contextmanager
def composition_errors() -> Iterator[None]:
    """Around Hydra: what it refuses to compose is said in one message, with exit status 1.

    With the environment variable HYDRA_FULL_ERROR=1 the traceback comes instead.
    """
    global _ours
    if _wanted():
        with _guarded_composition():
            yield
        return
    # Without it Hydra prints and exits by itself; we want the exception.
    os.environ["HYDRA_FULL_ERROR"], _ours = "1", True
    try:
        with _one_message(), _guarded_composition():
            yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        _ours = False


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


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Around a run: a user's mistake becomes one message on stderr and exit status 1.

    A mistake is a ValueError raised by our own code (also inside a `_target_`). Everything else
    keeps its traceback; with the environment variable HYDRA_FULL_ERROR=1 everything does.
    """
    if _wanted():
        yield
        return
    os.environ.pop("HYDRA_FULL_ERROR", None)  # processes that the run starts shall not see ours
    with _one_message():
        yield


@contextmanager
def _one_message() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = sentence(error)
        if message is None:
            raise
        # SystemExit passes through Hydra, which would print an introduction to an exception.
        sys.exit(f"error: {message}")


def sentence(error: BaseException) -> str | None:
    if isinstance(error, MissingConfigException | ConfigCompositionException):
        return _composition_sentence(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read; write key=value, with quotes around blanks."
    while type(error).__name__ == "InstantiationException" and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ValueError):
        frames = traceback.extract_tb(error.__traceback__)
        if frames and Path(frames[-1].filename).is_relative_to(SOURCE_FOLDER):
            return str(error)
        return None
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _first_lines(error)
    return None


def _first_lines(error: BaseException) -> str:
    # OmegaConf adds lines on its inner types from the second paragraph on.
    lines = [line for line in str(error).splitlines() if "object_type=" not in line]
    return "\n".join(line.strip() for line in lines if line.strip())


def _composition_sentence(error: BaseException) -> str:
    text = str(error)
    # A choice may lie in a folder of its group, as experiment=he2015/resnet20 does.
    if match := re.search(r"Could not (?:find|load) '((?:hydra/)?[^/']+)/([^']+)'", text):
        group, wanted = match.groups()
        return f"{group}={wanted}: there is no such choice; {_offer(wanted, _choices(group))}"
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1])
    return _first_lines(error)


def _choices(group: str) -> list[str]:
    folder = CONF / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _offer(wanted: str, choices: list[str]) -> str:
    def likeness(choice: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, wanted, choice).ratio()
        alike = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(wanted, choice, strict=False)
        )
        return ratio, len(list(alike))

    close = max(choices, key=likeness)
    hint = f"did you mean {close}? " if likeness(close)[0] >= 0.6 else ""
    return f"{hint}Possible: {', '.join(choices)}."


def _unknown_key(key: str) -> str:
    """The sentence for an override of a key that is not there, with the keys that are."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    parser = OverridesParser.create()
    others = []
    for override in sys.argv[1:]:
        if "=" in override and not override.startswith("-"):
            parsed = parser.parse_overrides([override])[0]
            if parsed.key_or_group != key and not parsed.is_sweep_override():
                others.append(override)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            cfg = compose("train", overrides=others)
        except (HydraException, OmegaConfBaseException):
            cfg = compose("train")  # more than one is wrong: this one first
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        return _unknown_key(parent) if parent else f"{key}: there is no such key."
    keys = sorted(str(k) for k in node if not str(k).startswith("_"))
    return f"{key}: there is no such key; {_offer(last, keys)}"
