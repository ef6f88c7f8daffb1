"""A finished run as a small run folder for others: weights, config, figures and a README.

Where things lie on this machine is nobody else's business: absolute paths are taken out.
"""

import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from omegaconf import OmegaConf

from resnet_lab.commands._card import card
from resnet_lab.commands._new_folder import new_folder
from resnet_lab.config.compose import OF_THE_COMMAND, key_of, moved, within
from resnet_lab.config.errors import UserError
from resnet_lab.files import write_text
from resnet_lab.run import checkpoint_io
from resnet_lab.run.folder import RunFolder
from resnet_lab.run.load import Finished, load_run

WEIGHTS = "model.safetensors"
OF_THE_WEIGHTS = ("val/", "test/", "best_epoch")  # figures in result.json
OF_THE_PLACE = (*OF_THE_COMMAND, "data.cache_dir", "logger")  # words of a command
# An absolute path within a text, but not what follows the host of an address.
_PATH = re.compile(r"""(?<![\w./~-])/(?!/)[^\s'",;(){}\[\]=]+""")


def publish(run: Finished, out: Path, trust: Sequence[str] = ()) -> int:
    """Write the folder `out`, whole or not at all.

    Args:
        trust: packages that the run's config may name, as for `load_run`.

    Returns:
        How many tensors it holds. They were loaded from it again, and are the same bit for bit.

    Raises:
        UserError: something lies at `out`, or what was written is not what the run has.
    """
    weights = run.classifier.state_dict()
    config, result = public_config(RunFolder(run.run_dir).read_config()), _result(run)
    with new_folder(out) as path:
        folder = RunFolder(path)
        checkpoint_io.save_weights(weights, path / WEIGHTS)
        write_text(folder.config, OmegaConf.to_yaml(OmegaConf.create(config)))
        folder.write_result(result)
        if (metrics := RunFolder(run.run_dir).metrics).is_file():
            shutil.copyfile(metrics, folder.metrics)
        write_text(path / "README.md", card(out, config, result))
        again = load_run(path, trust=trust).classifier.state_dict()
        if checkpoint_io.fingerprint(again) != checkpoint_io.fingerprint(weights):
            raise UserError(f"{out}: the weights read back are not those written; nothing is left.")
    return len(weights)


def _result(run: Finished) -> dict[str, Any]:
    """result.json for others; without the figures where they are not those of these weights."""
    folder, result = RunFolder(run.run_dir), dict(run.result)
    chosen = folder.best if "best_checkpoint" in result else folder.last
    if run.checkpoint.resolve() != chosen.resolve():
        result = {k: v for k, v in result.items() if not k.startswith(OF_THE_WEIGHTS)}
    result["class_names"] = run.class_names
    result["best_checkpoint"] = WEIGHTS
    result["command"] = public_command(str(result.get("command", "")))
    return {
        key: PurePosixPath(value).name if isinstance(value, str) and _absolute(value) else value
        for key, value in result.items()
    }


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run without its loggers, and without absolute paths.

    The folder of the data keeps its name, below data/; the run's own folder becomes "."; any other
    path becomes null.
    """
    content = dict(config) | {"logger": {}}
    if isinstance(place := config.get("run_dir"), str):
        content = moved(content, place, ".")
    public: dict[str, Any] = _public(content, "")
    return public


def public_command(command: str) -> str:
    """The command of a run, without words on where it lies, and without absolute paths."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    kept = [word for word in words if "=" not in word or not within(key_of(word), OF_THE_PLACE)]
    return shlex.join(map(_public_word, kept))


def _public_word(word: str) -> str:
    key, equals, value = word.partition("=")
    bare = value.strip("\"'")
    if equals and _absolute(bare):
        quote = value[: value.index(bare)]
        return f"{key}={quote}{_renamed(key, bare)}{quote}"
    return _without_paths(word)


def _public(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return {name: _public(child, str(name)) for name, child in node.items()}
    if isinstance(node, list):
        return [_public(child, key) for child in node]
    if not isinstance(node, str):
        return node
    if _absolute(node):
        return _renamed(key, node) if key == "root" else None
    return _without_paths(node)


def _renamed(key: str, path: str) -> str:
    """A folder of data under data/; of another path its name."""
    name = _name(path)
    if key.rpartition(".")[2] != "root":
        return name
    return "data" if name in ("", "data") else f"data/{name}"


def _without_paths(text: str) -> str:
    return _PATH.sub(lambda match: _name(match[0]), text)


def _absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _name(path: str) -> str:
    return PureWindowsPath(path).name  # it knows both kinds of slashes
