"""train.py in which the device FAULT_RANK raises in its tenth step; run by test_stop.py."""

import itertools
import os
from pathlib import Path
from typing import Any

from resnet_lab.classifier import Classifier

step = Classifier.training_step
count = itertools.count(1)


def faulty(self: Classifier, *arguments: Any) -> Any:
    if next(count) == 10 and self.global_rank == int(os.environ["FAULT_RANK"]):
        raise RuntimeError("on purpose")
    return step(self, *arguments)


Classifier.training_step = faulty  # type: ignore[method-assign]
# Not by runpy: the command line, by which Lightning starts the other device, is to name this file.
train = Path(__file__).parents[1] / "train.py"
exec(compile(train.read_text(), train, "exec"))
