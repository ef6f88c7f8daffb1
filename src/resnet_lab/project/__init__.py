"""Projects of one's own: what their train.py calls, and in template/ what `resnet-lab new` writes.

A file of template/ is a Jinja template. In its path NAME is the project's name and DOT a dot.
"""

import hydra
from omegaconf import DictConfig

from resnet_lab.config.compose import CONF, VERSION_BASE
from resnet_lab.config.messages import composition_errors, one_sentence_errors


@hydra.main(config_path=str(CONF), config_name="train", **VERSION_BASE)
def _train(cfg: DictConfig) -> None:
    with one_sentence_errors():
        from resnet_lab.run.training import train  # imports torch: the config is known to be good

        train(cfg)


def main() -> None:
    """Train what the command line of this process says: a project's train.py is this call.

    A sweep and a run on several devices start that same script again for their processes.
    """
    with composition_errors():
        _train()
