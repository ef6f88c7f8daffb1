"""What a value may be: the one table for every key of a config; imports no torch."""

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from resnet_lab.config.errors import UserError
from resnet_lab.models import family

PRECISIONS = ("auto", "32", "bf16-mixed", "16-mixed", "64", "bf16-true", "16-true", "32-true")


def _range(low: float, high: float = math.inf) -> Callable[[Any], bool]:
    """Whether a value is a pair of numbers from `low` to `high`, the first above 0."""

    def holds(v: Any) -> bool:
        pair = isinstance(v, list) and len(v) == 2 and all(map(_number, v))
        return pair and v[0] > 0 and low <= v[0] <= v[1] <= high

    return holds


def _sides(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    if not all(isinstance(p, list) and len(p) == 2 and all(map(_whole, p)) for p in value):
        return False
    epochs = [epoch for epoch, _ in value]
    rising = epochs[0] == 0 and all(a < b for a, b in itertools.pairwise(epochs))
    return rising and all(side >= 8 for _, side in value)


Rule = tuple[Callable[[Any], bool], str]  # whether a value is possible, and in words which are


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _devices(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) > 0 and all(_whole(v) and v >= 0 for v in value)
    return value == "auto" or value == -1 or (_whole(value) and value >= 1)


def _reference(value: Any) -> bool:
    if isinstance(value, dict):
        figures = value.keys() & {"test_error", "test_acc"}
        known = value.keys() <= {"test_error", "test_acc", "data", "source"}
        return known and len(figures) == 1 and _number(value[figures.pop()])
    return value is None or _number(value)


def _one_of(*choices: str) -> Rule:
    *most, last = choices
    return lambda v: v in choices, f"one of {', '.join(most)} or {last}"


def _or_null(rule: Rule) -> Rule:
    holds, allowed = rule
    return lambda v: v is None or holds(v), allowed + ", or null"


_POSITIVE: Rule = (lambda v: _number(v) and v > 0, "a number above 0")
_NOT_NEGATIVE: Rule = (lambda v: _number(v) and v >= 0, "a number of 0 or more")
_SHARE: Rule = (lambda v: _number(v) and 0 <= v < 1, "a number from 0 to below 1")
_COUNT: Rule = (lambda v: _whole(v) and v >= 1, "a whole number of 1 or more")
_COUNTS: Rule = (
    lambda v: isinstance(v, list) and len(v) > 0 and all(map(_COUNT[0], v)),
    "a list of whole numbers of 1 or more, such as [2,2,2]",
)
_WHOLE: Rule = (lambda v: _whole(v) and v >= 0, "a whole number of 0 or more")
_YES_NO: Rule = (lambda v: isinstance(v, bool), "true or false")
_TRIPLE: Rule = (
    lambda v: isinstance(v, list) and len(v) in (1, 3) and all(map(_number, v)),
    "three numbers such as [0.49, 0.48, 0.45], one for each of red, green and blue; or one, for "
    "gray images",
)
_TO_ONE: Rule = (lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1")
_PART: Rule = (
    lambda v: (_whole(v) and v >= 0) or (isinstance(v, float) and 0 <= v <= 1),
    "a share from 0.0 to 1.0 or a whole number of batches",
)

RULES: dict[str, Rule] = {
    "rank_timeout": _POSITIVE,
    "callbacks.last.minutes": _NOT_NEGATIVE,
    "seed": (lambda v: _whole(v) and 0 <= v < 2**32, "a whole number from 0 to 4294967295"),
    "compile": (lambda v: isinstance(v, bool) or v == "auto", "true, false or auto"),
    "cuda_graph": (lambda v: isinstance(v, bool) or v == "auto", "true, false or auto"),
    "reference": (
        _reference,
        "a test error in percent, null, or a mapping such as "
        "{test_error: 8.75, data: cifar10, source: their paper} (or test_acc)",
    ),
    "classifier.label_smoothing": _SHARE,
    "classifier.decay_norm_and_bias": _YES_NO,
    "classifier.loss": _one_of("ce", "bce"),
    "classifier.bce_threshold": _SHARE,
    "classifier.class_weights": _or_null(
        (
            lambda v: (
                v == "balanced"
                or (isinstance(v, list) and len(v) > 1 and all(map(_POSITIVE[0], v)))
            ),
            "balanced, a list of numbers above 0, one for each class",
        )
    ),
    "classifier.trunk_lr_scale": _POSITIVE,
    "classifier.layer_decay": (
        lambda v: _number(v) and 0 < v <= 1,
        "a number above 0, at most 1",
    ),
    "classifier.ends": _or_null(
        (lambda v: isinstance(v, dict), "options of the optimizer such as {use_fallback: true}")
    ),
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
    "data.test_size": _or_null(
        (
            lambda v: _number(v) and (0 < v < 1 or (_whole(v) and v >= 1)),
            "a share above 0 and below 1, or a whole number of images",
        )
    ),
    "data.test_split": _one_of("test", "val"),
    "data.mean": _or_null(_TRIPLE),
    "data.std": _or_null(
        (lambda v: _TRIPLE[0](v) and all(x > 0 for x in v), _TRIPLE[1] + ", above 0")
    ),
    "data.channels": (lambda v: _whole(v) and v in (1, 3), "3, or 1 for gray images"),
    "data.crop_padding": _WHOLE,
    "data.flip": _YES_NO,
    "data.cutout": _WHOLE,
    "data.random_resized_crop": (
        _range(0, 1),
        "the smallest and the largest share of the area, such as [0.08, 1.0]",
    ),
    "data.augment.policy": _or_null(_one_of("trivial", "rand", "auto_cifar10", "auto_imagenet")),
    "data.augment.rand_ops": _COUNT,
    "data.augment.rand_magnitude": (
        lambda v: _whole(v) and 0 <= v <= 30,
        "a whole number from 0 to 30",
    ),
    "data.augment.jitter": _or_null(
        (
            lambda v: (
                isinstance(v, list)
                and len(v) == 4
                and all(_number(x) and x >= 0 for x in v)
                and v[3] <= 0.5
            ),
            "four numbers of 0 or more, such as [0.4, 0.4, 0.4, 0.1], the last at most 0.5",
        )
    ),
    "data.augment.grayscale": _TO_ONE,
    "data.augment.blur": _TO_ONE,
    "data.augment.blur_sigma": (_range(0), "two numbers above 0, such as [0.1, 2.0]"),
    "data.augment.erasing": _TO_ONE,
    "data.augment.erasing_area": (_range(0, 0.9), "two shares up to 0.9, such as [0.02, 0.33]"),
    "data.augment.mixup": _NOT_NEGATIVE,
    "data.augment.cutmix": _NOT_NEGATIVE,
    "data.augment.mix": _TO_ONE,
    "data.augment.repeats": _COUNT,
    "data.resize": _or_null(
        (
            _sides,
            "epochs from 0 on and sides of 8 pixels or more, such as [[0, 128], [10, 224]]",
        )
    ),
    "data.balance": _YES_NO,
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
    "optimizer.rho": _POSITIVE,
    "optimizer.trust_coeff": _POSITIVE,
    "optimizer.ns_steps": _COUNT,
    "optimizer.fallback_lr_scale": _POSITIVE,
    "optimizer.warmup_steps": _WHOLE,
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
    "trainer.check_val_every_n_epoch": _or_null(_COUNT),
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
    "sweep.jobs_per_device": _or_null(
        (
            lambda v: _number(v) and v > 0 and (v if v >= 1 else 1 / v) % 1 == 0,
            "a whole number, or one divided by a whole number",
        )
    ),
    "sweep.on_error": _one_of("continue", "stop"),
    "sweep.retries": _WHOLE,
    "sweep.halving": _or_null((lambda v: _number(v) and v >= 2, "a number of 2 or more")),
    "sweep.force": _YES_NO,
    "sweep.plan": _YES_NO,
    "sweep.warm": _YES_NO,
}

# The options of our own nets, by their names in `model`. Another net may use the same names for
# something else, so these hold for the nets in `NETS` alone.
NET_RULES: dict[str, Rule] = {
    "block": _one_of("basic", "bottleneck", "preact_basic", "preact_bottleneck"),
    "depth": _COUNT,
    "depths": _COUNTS,
    "widths": _COUNTS,
    "preact": _YES_NO,
    "shortcut": _one_of(
        *("A", "B", "C", "D", "scale", "gate", "shortcut_gate", "conv", "dropout", "learned"),
        "none",
    ),
    "activation": _or_null(
        _one_of("original", "norm_after", "relu_before", "relu_only", "full"),
    ),
    "stem": _or_null(_one_of("cifar", "imagenet", "deep")),
    "stem_width": _or_null(_COUNT),
    "groups": _COUNT,
    "group_width": _COUNT,
    "se": _or_null(_COUNT),
    "blur": _YES_NO,
    "drop_path": _SHARE,
    "branch_scale": _or_null(_one_of("skipinit", "fixup")),
    "norm": _one_of("batch", "group", "none"),
    "width": _POSITIVE,
    "zero_init_residual": _YES_NO,
    "in_channels": _COUNT,
    "image_size": _or_null(_COUNT),
    "num_classes": _or_null(_COUNT),
    "trunk": (
        lambda v: isinstance(v, str) or (isinstance(v, dict) and "_target_" in v),
        "a name, a run folder or a net such as {_target_: my_package.MyNet}",
    ),
    "weights": _or_null((lambda v: isinstance(v, str), "DEFAULT, a file")),
    "freeze": (
        lambda v: v in ("all", "none") or (_whole(v) and v >= 1),
        "all, none or a number of stages from 1 on",
    ),
    "head": (
        lambda v: isinstance(v, list) and all(map(_COUNT[0], v)),
        "a list of whole numbers of 1 or more, such as [4096,4096], or []",
    ),
    "dropout": _SHARE,
}

# Shortcuts that add channels of zeros where a block has more of them.
_PADDED = ("A", "scale", "gate", "shortcut_gate", "dropout", "learned")

# The options that each net needs, and those it may have besides.
_RESNET = (
    "shortcut activation stem stem_width norm width groups group_width se blur drop_path "
    "branch_scale dropout zero_init_residual in_channels image_size"
)
NETS: dict[str, tuple[str, str]] = {
    "resnet_lab.models.resnet.ResNet": ("num_classes block depths widths", _RESNET),
    "resnet_lab.models.resnet.cifar_resnet": ("num_classes depth", f"block {_RESNET}"),
    "resnet_lab.models.resnet.imagenet_resnet": ("num_classes depth", f"preact {_RESNET}"),
    "resnet_lab.models.classic.TextbookCNN": ("num_classes", "image_size"),
    "resnet_lab.models.classic.TextbookResNet": ("num_classes", "image_size"),
    "resnet_lab.models.pretrained.Pretrained": (
        "num_classes trunk",
        "weights freeze head dropout",
    ),
}


def spelled(value: Any) -> str:
    """As one would type it on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return "[" + ",".join(map(spelled, value)) + "]"
    return str(value)


_ABSENT = object()


def plain(cfg: DictConfig, key: str) -> Any:
    """What stands at a dotted key, resolved, as numbers, texts, lists and mappings."""
    value = OmegaConf.select(cfg, key, default=_ABSENT)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def value_faults(cfg: DictConfig, missing: Collection[str]) -> Iterator[str]:
    """A sentence for each value that its rule in `RULES` forbids; `missing` keys are left out."""
    for key, (holds, allowed) in RULES.items():
        value = _ABSENT if key in missing else plain(cfg, key)
        if value is not _ABSENT and not holds(value):
            yield f"{key}={spelled(value)}: must be {allowed}."


def net_faults(model: Mapping[str, Any], section: str = "model") -> Iterator[str]:
    """A sentence for each thing that the config of a net gets wrong.

    Args:
        model: plain values; `_target_` says which net. One that is none of ours is not looked at.
            `num_classes` and `image_size` may be None: not known yet.
        section: where in the whole config it stands.
    """
    if model.get("_target_") not in NETS:
        return
    net = model["_target_"].rpartition(".")[2]
    needed, more = (names.split() for names in NETS[model["_target_"]])
    known = sorted(needed + more)
    given = {key: value for key, value in model.items() if not key.startswith("_")}  # not Hydra's
    faults = [
        f"{section}.{key}: {net} has no such option; it has {', '.join(known)}."
        for key in given
        if key not in known
    ]
    faults += [
        f"{section}.{key}: {net} needs it; it must be {NET_RULES[key][1]}."
        for key in needed
        if key not in given
    ]
    faults += [
        f"{section}.{key}={spelled(value)}: must be {NET_RULES[key][1]}."
        for key, value in given.items()
        if key in known and not NET_RULES[key][0](value)
    ]
    yield from faults or _net_contradictions(net, given, section)


def _net_contradictions(net: str, given: Mapping[str, Any], section: str) -> Iterator[str]:
    depths, widths = given.get("depths", []), given.get("widths", [])
    shortcut = given.get("shortcut", "A" if net == "cifar_resnet" else "B")
    plan = family.Plan(given.get("block", ""), depths, widths)
    try:
        if net == "cifar_resnet":
            plan = family.cifar_plan(given["depth"], given.get("block", "basic"))
        elif net == "imagenet_resnet":
            plan = family.imagenet_plan(given["depth"], given.get("preact", False))
    except UserError as error:
        yield f"{section}.{error}"
    if len(depths) != len(widths):
        yield (
            f"{section}.depths={spelled(depths)} and {section}.widths={spelled(widths)}: give both "
            "for the same number of stages."
        )
    if shortcut in _PADDED and widths != sorted(widths):
        yield (
            f"{section}.shortcut={shortcut}: it can only add channels, but {section}.widths="
            f"{spelled(widths)} take some away; use B, C or none, or widths that never fall."
        )
    if plan.block and plan.widths:
        expansion = 4 if plan.block.endswith("bottleneck") else 1
        first = family.scale(plan.widths, given.get("width", 1.0))[0] * expansion
        stem_width = given.get("stem_width") or 0
        if shortcut in _PADDED and stem_width > first:
            yield (
                f"{section}.stem_width={stem_width}: more than the {first} channels that the first "
                f"stage puts out, and shortcut {shortcut} can only add some; use B, C or none."
            )
        yield from _block_contradictions(plan.block, given, section)
    if isinstance(given.get("trunk"), dict):
        yield from net_faults(given["trunk"], f"{section}.trunk")


def _block_contradictions(block: str, given: Mapping[str, Any], section: str) -> Iterator[str]:
    scale, activation = given.get("branch_scale"), given.get("activation")
    if given.get("shortcut") == "none":
        if given.get("zero_init_residual"):
            yield (
                f"{section}.zero_init_residual=true: without a shortcut every block would put out "
                "zeros and never learn; use shortcut A, B or C, or zero_init_residual=false."
            )
        for key in ("branch_scale", "drop_path"):
            if given.get(key):
                yield (
                    f"{section}.{key}={given[key]}: without a shortcut a block has nothing but its "
                    f"branch; use shortcut A, B or C, or leave {key} out."
                )
    if scale and given.get("zero_init_residual"):
        yield f"{section}.branch_scale={scale}: has its own start; leave zero_init_residual out."
    if scale == "fixup" and given.get("norm", "batch") != "none":
        yield f"{section}.branch_scale=fixup: is in place of a norm; set {section}.norm=none."
    if activation == "relu_before" and (given.get("zero_init_residual") or scale == "fixup"):
        yield (
            f"{section}.activation=relu_before: a relu stands behind each branch, and passes no "
            "gradient where the branch starts at zero; use another activation, or "
            "branch_scale=skipinit."
        )
    if activation not in (None, "full") and block.startswith("preact"):
        yield (
            f"{section}.activation={activation}: a block that begins with norm and relu is "
            "activation=full; take another block, or leave activation out."
        )
    if not block.endswith("bottleneck"):
        for key, plain_value in (("groups", 1), ("group_width", 64)):
            if given.get(key, plain_value) != plain_value:
                yield f"{section}.{key}={given[key]}: only bottleneck blocks have groups."
    elif given.get("dropout"):
        yield f"{section}.dropout={given['dropout']}: only basic blocks have dropout inside."
