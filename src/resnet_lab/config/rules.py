"""What a value may be: one table for every key of a config; imports no torch."""

import itertools
import re
from collections.abc import Callable
from typing import Any

from resnet_lab.trust import (
    NAME,
)

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
