"""Configs that come with a run folder: data that anybody may have written, never code.

What a user types and the config files she points to are hers, and may name anything. A config that
is read back from a run folder may not: it is plain values, in which nothing refers to anything
else, and it names only what is listed here or what the command line adds.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from resnet_lab.config.compose import texts
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable, read_text

MOST_BYTES, MOST_LEVELS = 2**20, 50  # of a config file; ours have some thousand and ten

_NAMED = {  # module: what may be named of it
    "resnet_lab.models.resnet": "ResNet cifar_resnet imagenet_resnet",
    "resnet_lab.models.classic": "TextbookCNN TextbookResNet",
    "resnet_lab.models.pretrained": "Pretrained",
    "resnet_lab.data.datamodule": "ImageDataModule",
    "resnet_lab.data.sources": "Digits CIFAR10 CIFAR100 ImageFolder",
    "resnet_lab.classifier": "Classifier",
    "resnet_lab.schedule": "constant multistep cosine onecycle exponential",
    "resnet_lab.optim": "SAM",
    "schedulefree": "AdamWScheduleFree RAdamScheduleFree SGDScheduleFree",
    "timm.optim": "Lamb Lars Lion Muon",
    "torch.optim": "Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD Muon NAdam RAdam "
    "RMSprop Rprop SGD",
    "torch.optim.lr_scheduler": "ConstantLR CosineAnnealingLR CosineAnnealingWarmRestarts CyclicLR "
    "ExponentialLR LinearLR MultiStepLR OneCycleLR PolynomialLR ReduceLROnPlateau StepLR",
    "lightning.pytorch": "Trainer",
    # Only a resumed run makes these; where they write is looked at by `check_places`.
    "resnet_lab.callbacks": "compile_net.CompileNet confusion_matrix.ConfusionMatrix "
    "cuda_graph.CudaGraph ema.EMA "
    "epoch_log.EpochLog grad_norm.GradNorm last_checkpoint.LastCheckpoint live_bar.LiveBar "
    "learning_curves.LearningCurves nan_guard.NanGuard sample_grid.SampleGrid unfreeze.Unfreeze "
    "wrong_images.WrongImages",
    "lightning.pytorch.callbacks": "DeviceStatsMonitor EarlyStopping GradientAccumulationScheduler "
    "LearningRateMonitor ModelCheckpoint StochasticWeightAveraging Timer",
    "resnet_lab.board": "Board",
    "resnet_lab.loggers": "CSV",
    "lightning.pytorch.loggers": "CSVLogger TensorBoardLogger",
    "lightning.pytorch.profilers": "AdvancedProfiler PyTorchProfiler SimpleProfiler",
}
NAMES = frozenset(f"{module}.{name}" for module, text in _NAMED.items() for name in text.split())
PLACES = ("dirpath", "default_root_dir", "log_dir", "path", "root_dir", "run_dir", "save_dir")
# libyaml reads a thousand configs in seconds, PyYAML's own parser in minutes.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def parse_yaml(text: str) -> Any:
    """The content of a YAML text: numbers, texts, lists and mappings.

    Raises:
        YAMLError: it is none, or has aliases (nine lines of them stand for millions of values),
            more than `MOST_LEVELS` levels (libyaml recurses for each) or control characters.
    """
    level = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which no run writes")
        level += isinstance(event, yaml.CollectionStartEvent)
        level -= isinstance(event, yaml.CollectionEndEvent)
        if level > MOST_LEVELS:
            raise yaml.YAMLError("it is nested too deeply")
    content = yaml.load(text, Loader=_LOADER)
    for _, value in texts(content):
        if printable(value) != value:
            raise yaml.YAMLError(f"{printable(value)!r} holds control characters")
    return content


def read_yaml(path: Path) -> Any:
    """`parse_yaml` of a file of a run folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged, too large, or what `parse_yaml` refuses.
    """
    try:
        return parse_yaml(read_text(path, MOST_BYTES))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = printable(" ".join(str(error).split()))
        raise UserError(f"{path} is damaged: {reason}") from error


def check_values(config: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where a config that was read back refers to anything but itself."""
    for key, text in texts(config):
        if "${" in text:
            raise UserError(
                f"{path}: {key}: {text} asks for something outside this config, such as an "
                f"environment variable, and a run folder may not; give it on the command line: "
                f"{key}=..."
            )


def check_names(config: Any, path: Path, trusted: Collection[str], how: str) -> None:
    """Raise UserError where a `_target_` in a config that was read back may not be named.

    Args:
        trusted: what may be named besides `NAMES`: names, or packages ending in a dot.
        how: what the user can do, for the message.
    """
    packages = tuple(name for name in trusted if name.endswith("."))
    names = NAMES.union(trusted).difference(packages)
    for key, name in texts(config):
        if key.rpartition(".")[2] != "_target_" or name in names:
            continue
        if re.fullmatch(r"\w+(\.\w+)+", name) and name.startswith(packages):
            continue
        raise UserError(
            f"{path}: {key}: {printable(name)} is none of the names that a run folder may give; "
            f"nothing was run. {how}"
        )


def check_places(config: Any, path: Path, folder: str, known: Mapping[str, str]) -> None:
    """Raise UserError where a config that was read back would write outside its run's folder.

    Args:
        folder: the run's.
        known: texts by key that the user has typed or configured herself.
    """
    for key, text in texts(config):
        inside = text == folder or text.startswith(f"{folder}/")
        leads_out = (Path(text).is_absolute() and not inside) or ".." in Path(text).parts
        place = key.rpartition(".")[2] in PLACES
        if (leads_out or (place and not inside)) and known.get(key) != text:
            raise UserError(f"{path}: {key}: {text} lies outside the run's folder {folder}.")
