"""The plan's helper process, the only one that imports torch: what the jobs' nets cost.

    python -m resnet_lab.sweep.measure < {"jobs": [config, ...]} > [cost, ...]

A cost: `params`, `macs`, `steps` of the whole run and `batch` (images of one device in each),
`eval_images` of the whole run.
"""

import json
import os
import sys
import tempfile
from typing import Any

from omegaconf import OmegaConf

from resnet_lab.config.messages import one_sentence_errors
from resnet_lab.run import build


def measure(configs: list[dict[str, Any]], run_dir: str) -> list[dict[str, Any]]:
    """See the head of this file; `run_dir` may be written to."""
    costs: dict[str, dict[str, Any]] = {}
    keys = []
    for config in configs:
        # Jobs of the same net on the same data, as those of other seeds, cost the same.
        same = [config["model"], {**config["data"], "seed": None}, config["trainer"]]
        keys.append(json.dumps(same, sort_keys=True))
        if keys[-1] not in costs:
            costs[keys[-1]] = _cost(config, run_dir)
    return [costs[key] for key in keys]


def _cost(config: dict[str, Any], run_dir: str) -> dict[str, Any]:
    # Without whatever would leave something behind or start other processes.
    cfg = OmegaConf.create({**config, "run_dir": run_dir, "callbacks": {}, "logger": {}})
    cfg.trainer.enable_checkpointing = False
    devices = cfg.trainer.devices if isinstance(cfg.trainer.devices, int) else 1
    cfg.trainer.devices = 1
    parts = build.build(cfg)
    data, trainer = parts.datamodule, parts.trainer
    epochs = trainer.max_epochs or 1
    steps = epochs * data.train_batches
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps) if epochs > 0 else trainer.max_steps
        epochs = -(-steps // data.train_batches)
    return {
        "params": parts.complexity.params,
        "macs": parts.complexity.macs,
        "batch": data.batch_size // max(1, devices),
        "steps": steps,
        "eval_images": (epochs * data.n_val + data.n_test) // max(1, devices),
    }


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed meanwhile must not look like an answer
    with one_sentence_errors(), tempfile.TemporaryDirectory() as folder:
        json.dump(measure(json.load(sys.stdin)["jobs"], folder), answers)
    answers.close()


if __name__ == "__main__":
    main()
