"""The README of a published net: what its config and its result say, in one table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from resnet_lab.config.compose import APP
from resnet_lab.config.rules import spelled
from resnet_lab.data.decode import SMALL, evaluation_zoom
from resnet_lab.files import printable

UNKNOWN = "not recorded"
SWITCHES = ("policy", "jitter", "grayscale", "blur", "erasing", "mixup", "cutmix")  # data.augment


def card(folder: Path, config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """The text of README.md in `folder`, from the config and the result that lie beside it."""
    name, data = folder.absolute().name, config["data"]
    at_home = folder.absolute().parent == APP / "docs" / "models"
    place = f"docs/models/{name}" if at_home else name
    table = "\n".join(f"| {what} | {_cell(text)} |" for what, text in _rows(config, result))
    classes = ", ".join(map(str, result["class_names"]))
    mean, std = (", ".join(f"{x:.6g}" for x in data[key]) for key in ("mean", "std"))
    channels, size = data.get("channels", 3), data["image_size"]
    images = "Gray" if channels == 1 else "RGB"
    zoom = evaluation_zoom(size)
    part = "" if zoom == 1 else f", {100 * zoom:g} % of its shorter side"
    command = result.get("command") or UNKNOWN
    return f"""# {_cell(name)}

A net trained with resnet-lab. This folder is a run folder: the commands of resnet-lab that take a
finished run take it.

| | |
|---|---|
{table}

## Use it

```python
import resnet_lab as lab

net = lab.load("{name}")  # or the path of this folder
net.predict("photo.jpg")
```

```
resnet-lab predict {place} photo.jpg
```

Without resnet-lab:

```python
from safetensors.torch import load_file

weights = load_file("model.safetensors")  # every name begins with "net."
weights = {{name.removeprefix("net."): tensor for name, tensor in weights.items()}}
```

{images} images go in as float32 [n, {channels}, {size}, {size}], values from 0 to 1, normalised
channel by channel: minus the mean, divided by the std. Logits come out, in the order of the classes
below.

- mean: {mean}
- std: {std}

## How it was trained

```
{printable(str(command))}
```

`config.yaml` has every setting, `metrics.csv` every epoch.

## Limits

- One run with one seed: it says nothing of the spread over seeds.
- It gives every image one of {len(result["class_names"])} classes: {_cell(classes)}.
- It sees {size} x {size} pixels: the central square of an image{part}, resized to that.
- Its figures compare only with those of nets trained on the same files.
"""


def _rows(config: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    data, trainer = config["data"], config["trainer"]
    yield "net", _net(config, result)
    yield "parameters", _count(result.get("params"))
    macs = result.get("macs")
    yield "multiply-adds", f"{macs / 1e6:,.2f} M" if _is_number(macs) else UNKNOWN
    root, kind = data.get("root"), result.get("data", UNKNOWN)
    name = Path(str(root)).name
    yield "data", f"{kind} ({name})" if root and name != kind else str(kind)
    counts = [("train", "in an epoch"), ("val", "for validation"), ("test", "for the test")]
    images = [f"{_count(result.get(f'n_{part}'))} {use}" for part, use in counts]
    yield "images", f"{', '.join(images)}; {data['image_size']} pixels a side"
    yield "optimizer", _call(config["optimizer"])
    yield "schedule", _call(config["scheduler"])
    yield "loss", _loss(config["classifier"])
    yield "batch", str(result.get("batch_size", data["batch_size"]))
    yield "length", f"{_count(result.get('epochs'))} epochs, {_count(result.get('steps'))} steps"
    yield "augmentation", _augmentation(data)
    yield "precision", str(result.get("precision", trainer.get("precision")))
    devices = result.get("devices", 1)
    device = str(result.get("device_name", UNKNOWN))
    yield "device", device if devices == 1 else f"{devices} x {device}"
    yield "seed", str(result.get("seed", config.get("seed")))
    yield "validation accuracy", _accuracy(result, "val")
    yield "test accuracy", _accuracy(result, "test")
    yield "best epoch", str(result.get("best_epoch", UNKNOWN))
    versions = result.get("versions")
    found = versions.items() if isinstance(versions, Mapping) else ()
    yield "versions", ", ".join(f"{package} {number}" for package, number in found) or UNKNOWN
    yield "date", str(result.get("started", UNKNOWN))[:10]


def _net(config: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    name = result.get("model") or config["model"]["_target_"].rpartition(".")[2]
    shortcut = config["model"].get("shortcut")
    if shortcut == "none":
        return f"{name} without shortcuts (plain)"
    return str(name) if shortcut is None else f"{name}, shortcut {shortcut}"


def _call(section: Mapping[str, Any]) -> str:
    """`{_target_: torch.optim.SGD, lr: 0.1}` -> "SGD: lr 0.1"."""
    settings = {k: v for k, v in section.items() if not k.startswith("_") and v is not None}
    if not settings.get("warmup"):
        settings = {k: v for k, v in settings.items() if not k.startswith("warmup")}
    inner = {k: f"({_call(v)})" for k, v in settings.items() if isinstance(v, Mapping)}
    texts = [f"{key} {inner.get(key, spelled(value))}" for key, value in settings.items()]
    name = str(section.get("_target_", UNKNOWN)).rpartition(".")[2]
    return f"{name}: {', '.join(texts)}" if texts else name


def _loss(classifier: Mapping[str, Any]) -> str:
    names = {"ce": "cross-entropy", "bce": "binary cross-entropy"}
    kind = str(classifier.get("loss", "ce"))
    smoothing = classifier.get("label_smoothing")
    return names.get(kind, kind) + (f", label smoothing {smoothing}" if smoothing else "")


def _augmentation(data: Mapping[str, Any]) -> str:
    """What is switched on; up to 64 pixels images are shifted, larger ones cropped and resized."""
    found = []
    if data["image_size"] > SMALL:
        found.append(f"random crop of {spelled(data.get('random_resized_crop'))} of the area")
    elif padding := data.get("crop_padding"):
        found.append(f"random crop after {padding} pixels of padding")
    if data.get("flip"):
        found.append("mirror images")
    if data.get("cutout"):
        found.append(f"cutout {data['cutout']}")
    policies = data.get("augment") or {}
    found += [f"{name} {spelled(policies[name])}" for name in SWITCHES if policies.get(name)]
    if policies.get("repeats", 1) != 1:
        found.append(f"{policies['repeats']} repeats of an image")
    return ", ".join(found) or "none"


def _accuracy(result: Mapping[str, Any], part: str) -> str:
    accuracy = result.get(f"{part}/acc")
    if not _is_number(accuracy):
        return "not measured with these weights"
    return f"{100 * accuracy:.2f} %"


def _count(number: Any) -> str:
    return f"{number:,}" if _is_number(number) else UNKNOWN


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(text: str) -> str:
    """On one line, and no end of a table's cell."""
    return printable(text).replace("|", "\\|")
