"""Train one network: `python train.py model=resnet50 trainer.devices=2`; several with `-m`."""

import hydra
from omegaconf import DictConfig

from resnet_lab.config.compose import VERSION_BASE
from resnet_lab.config.messages import composition_errors, one_sentence_errors


@hydra.main(config_path="conf", config_name="train", **VERSION_BASE)
def main(cfg: DictConfig) -> None:
    with one_sentence_errors():
        from resnet_lab.run.training import train  # imports torch: the config is known to be good

        train(cfg)


if __name__ == "__main__":
    with composition_errors():
        main()
