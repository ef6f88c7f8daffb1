"""A run and a sweep as Python objects; reading figures imports no torch, the net does."""

import base64
import html
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.report.runs import epochs
from resnet_lab.run.folder import RunFolder, SweepFolder, shown
from resnet_lab.screen import duration

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from resnet_lab.classifier import Classifier
    from resnet_lab.data.datamodule import ImageDataModule
    from resnet_lab.run.load import Finished
    from resnet_lab.run.predict import Labels, Picture

MOST_PICTURE_BYTES = 4_000_000  # of a picture that is shown in a notebook
MOST_SHOWN = 24  # pictures, of which `show` draws the first

# What can be predicted: see `Run.predict`.
Images = Any


class Run:
    """A run folder: its figures at once, its net as soon as it is asked for.

    Args:
        folder: of a run, finished or not.
        checkpoint: other weights than those of its best epoch.
        overrides: key=value for its config below data and trainer, such as data.root=... where the
            images have moved.
        trust: packages of your own that its config may name.

    Attributes:
        folder: where everything lies.
    """

    def __init__(
        self,
        folder: str | Path,
        checkpoint: str | Path | None = None,
        overrides: Sequence[str] = (),
        trust: Sequence[str] = (),
    ) -> None:
        self.folder = Path(folder)
        self._files = RunFolder(self.folder)
        self._how = None if checkpoint is None else Path(checkpoint), tuple(overrides), tuple(trust)

    # ------------------------------------------------------------------ figures

    @property
    def result(self) -> dict[str, Any]:
        """What result.json holds now: status, figures, versions."""
        return self._files.read_result()

    @property
    def config(self) -> dict[str, Any]:
        """The whole config of the run as plain data; UserError where there is none."""
        return self._files.read_config()

    @property
    def metrics(self) -> "pd.DataFrame":
        """A row for each epoch so far: train/loss, train/acc, val/loss, val/acc, lr and more."""
        import pandas as pd

        rows = epochs(self.folder)[0]
        table = pd.DataFrame.from_dict(rows, orient="index").drop(columns="epoch", errors="ignore")
        return table.rename_axis("epoch")

    @property
    def pictures(self) -> dict[str, Path]:
        """The PNG files of the run by name, such as "curves" and "confusion_matrix"."""
        files = sorted(self.folder.glob("*.png"))
        return {path.stem: path for path in files if not path.is_symlink()}

    # ------------------------------------------------------------------ net

    @cached_property
    def _loaded(self) -> "Finished":
        from resnet_lab.run.load import load_run

        checkpoint, overrides, trust = self._how
        return load_run(self.folder, checkpoint, overrides, trust)

    @property
    def net(self) -> "nn.Module":
        """The net with its best weights, on the CPU, in evaluation mode."""
        return self._loaded.net

    @property
    def classifier(self) -> "Classifier":
        """The LightningModule around `net`."""
        return self._loaded.classifier

    @property
    def datamodule(self) -> "ImageDataModule":
        """The data of the run; nothing is read before its `setup`."""
        return self._loaded.datamodule

    @property
    def checkpoint(self) -> Path:
        """The file of the weights of `net`."""
        return self._loaded.checkpoint

    @property
    def class_names(self) -> list[str]:
        """In the order of the logits."""
        return self._loaded.class_names

    def predict(self, images: Images, top_k: int = 1, device: str = "auto") -> "pd.DataFrame":
        """The likeliest labels of images, each with its probability.

        Args:
            images: file names or folders; PIL pictures; uint8 arrays [n, height, width, 3] or
                tensors [n, 3, height, width]; or one of them alone. Of any size: the net gets what
                it would get in evaluation.
            top_k: labels an image; columns label and probability, then label_2, probability_2, ...
            device: auto (a GPU where there is one), cpu, cuda, cuda:1.

        Returns:
            A row for each image, by file name or by number. A file that cannot be read has the
            reason in the column error.

        Raises:
            UserError: these are no images, or the run has no weights to predict with.
        """
        import pandas as pd

        rows = []
        for picture, labels in self._labelled(images, top_k, device):
            row: dict[str, Any] = {"image": str(picture.path)}
            for place, (label, probability) in enumerate(labels, 1):
                suffix = "" if place == 1 else f"_{place}"
                row |= {f"label{suffix}": label, f"probability{suffix}": probability}
            rows.append(row if picture.error is None else row | {"error": picture.error})
        return pd.DataFrame(rows).set_index("image")

    def show(
        self, images: Images, labels: Iterable[int | str] | None = None, device: str = "auto"
    ) -> Image.Image:
        """A picture of the first images with their likeliest labels.

        Args:
            images: as in `predict`; the first 24 are drawn.
            labels: what they are, as numbers or names of classes; by default the names of their
                folders, where these are classes.
        """
        from resnet_lab import charts
        from resnet_lab.data.decode import evaluation_zoom
        from resnet_lab.run.predict import tile

        found = self._labelled(images, 1, device, most=MOST_SHOWN)
        names: Sequence[str | None] = [None] * len(found)
        if labels is not None:
            names = [self._name(label) for label in labels][: len(found)]
        if len(names) < len(found):
            raise UserError(f"there are {len(names)} labels for {len(found)} images or more.")
        tiles = [
            tile(picture, likeliest, self.class_names, name)
            for (picture, likeliest), name in zip(found, names, strict=True)
        ]
        zoom = evaluation_zoom(self._loaded.cfg.data.image_size)
        title = "Likeliest label and its probability"
        pixels = charts.render(lambda: charts.grid(tiles, title, side=1.4, seen=zoom))
        return Image.fromarray(pixels)

    def _name(self, label: int | str) -> str:
        return label if isinstance(label, str) else self.class_names[int(label)]

    def _labelled(
        self, images: Images, top_k: int, device: str, most: int | None = None
    ) -> "list[tuple[Picture, Labels]]":
        from resnet_lab.run import machine, predict

        if top_k < 1:
            raise UserError(f"top_k={top_k}: must be 1 or more.")
        run, on = self._loaded, machine.named(device)
        size, top_k = run.cfg.data.image_size, min(top_k, len(run.class_names))
        paths, pictures = _sorted_out(images)
        files = [file for path in paths for file in predict.find(path)][:most]
        wanted = set(range(most or 0))  # of them the whole picture is kept, to be shown
        there = [predict.fitted(picture, size, n) for n, picture in enumerate(pictures[:most])]
        everything = [*predict.decoded(files, size, wanted), *there]
        return list(predict.labelled(run, on, everything, top_k))

    # ------------------------------------------------------------------ for people

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"Run({shown(self.folder)}: {facts})"

    def _facts(self) -> dict[str, str]:
        result = self.result
        facts = {"state": str(result.get("status", "missing"))}
        facts |= {name: str(result[name]) for name in ("model", "data", "seed") if name in result}
        for split, name in (("val", "validation"), ("test", "test")):
            if isinstance(accuracy := result.get(f"{split}/acc"), float):
                facts[f"{name} accuracy"] = f"{100 * accuracy:.2f} %"
        if isinstance(seconds := result.get("seconds"), float):
            facts["time"] = duration(seconds)
        return {name: printable(text) for name, text in facts.items()}

    def _repr_html_(self) -> str:
        """For notebooks: the figures and the learning curves."""
        facts = self._facts() | {"folder": shown(self.folder)}
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in facts.items()
        )
        curves = self.pictures.get("curves")
        picture = ""
        if curves is not None and curves.stat().st_size < MOST_PICTURE_BYTES:
            data = base64.b64encode(curves.read_bytes()).decode()
            picture = f'<img alt="learning curves" width="640" src="data:image/png;base64,{data}">'
        return f"<table>{rows}</table>{picture}"


class Sweep:
    """A sweep folder: its jobs as runs, and their figures in one table."""

    def __init__(self, folder: str | Path, trust: Sequence[str] = ()) -> None:
        self.folder = Path(folder)
        self._trust = tuple(trust)
        if not SweepFolder(self.folder).record.is_file():
            raise UserError(f"{folder} is no sweep: it holds no sweep.json.")

    @property
    def runs(self) -> list[Run]:
        """Its jobs that have begun, in the order of their settings."""
        folders = map(Path, self.table()["folder"])
        return [Run(folder, trust=self._trust) for folder in folders if folder.is_dir()]

    def table(self) -> "pd.DataFrame":
        """A row for each job; see `table`."""
        return table(self.folder)

    def report(self, out: str | Path | None = None) -> Path:
        """Write the report and return its page; as `resnet-lab report` does."""
        from resnet_lab.report.write import report

        return report([self.folder], None if out is None else Path(out)) / "report.html"

    def __repr__(self) -> str:
        states = self.table()["state"].value_counts()
        counted = ", ".join(f"{n} {state}" for state, n in states.items())
        return f"Sweep({shown(self.folder)}: {counted or 'no job has begun'})"

    def _repr_html_(self) -> str:
        """For notebooks: what was swept, and the figures."""
        table = self.table()
        first = list(table.columns[: table.columns.get_loc("model")])
        kept = [*first, "seed", "val/acc", "test/acc", "train_seconds"]
        text: str = table[list(dict.fromkeys(kept))].to_html(index=False, escape=True)
        return f"<p>{html.escape(repr(self))}</p>{text}"


def _sorted_out(images: Images) -> tuple[list[Path], list[Image.Image]]:
    """Paths, or pictures in memory: the other list is empty."""
    if isinstance(images, str | Path | Image.Image):
        images = [images]
    images = [images] if hasattr(images, "shape") else list(images)
    if images and all(isinstance(image, str | Path) for image in images):
        return [Path(image).expanduser() for image in images], []
    pictures: list[Image.Image] = []
    for image in images:
        if isinstance(image, Image.Image):
            pictures.append(image)
        elif hasattr(image, "shape"):
            pictures += _from_array(_from_tensor(image) if hasattr(image, "detach") else image)
        else:
            raise UserError(
                "images must be file names, PIL pictures, uint8 arrays [n, height, width, 3] or "
                f"tensors [n, 3, height, width], all of one kind; not {type(image).__name__}."
            )
    if not pictures:
        raise UserError("there are no images to predict.")
    return [], pictures


def _from_tensor(images: Any) -> np.ndarray:
    """[n, c, height, width] or [c, height, width] -> [n, height, width, c]."""
    array = cast(np.ndarray, images.detach().cpu().numpy())
    if array.ndim not in (3, 4) or array.shape[-3] not in (1, 3):
        raise UserError(f"a tensor of images must be [n, 3, height, width], not {[*array.shape]}.")
    array = array[None] if array.ndim == 3 else array
    return array.transpose(0, 2, 3, 1)


def _from_array(images: np.ndarray) -> list[Image.Image]:
    if images.dtype != np.uint8:
        raise UserError(
            f"images in memory must be uint8, from 0 to 255, not {images.dtype}; what has been "
            "normalised already goes into the net itself: run.net(images)."
        )
    if images.ndim == 2 or (images.ndim == 3 and images.shape[-1] in (1, 3)):
        images = images[None]
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] != 3):
        raise UserError(f"an array of images must be [n, height, width, 3], not {[*images.shape]}.")
    return [Image.fromarray(image) for image in np.ascontiguousarray(images)]


def table(*folders: str | Path, columns: Sequence[str] = ()) -> "pd.DataFrame":
    """A row for each run and each job of a sweep below some folders, as a DataFrame.

    Args:
        folders: outputs/ by default; sweeps, runs, or folders above them.
        columns: keys of the config to add, such as "optimizer.lr".

    Returns:
        Columns: name, a column for each key that was typed or swept, then state, model, data, seed,
        val/acc, val/loss, test/acc, test/loss, times, versions, and folder. What a run does not
        tell is missing.

    Raises:
        UserError: there is no such folder.
    """
    import pandas as pd

    from resnet_lab.report.catalogue import Catalogue
    from resnet_lab.report.row import columns_of_config, row, typed_value

    paths = [Path(folder) for folder in folders] or [Path("outputs")]
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder.")
    rows = []
    for run in Catalogue(paths).read():
        found = row(run, Path.cwd())
        for name in ("path", "size"):
            found.pop(name, None)
        asked = columns_of_config(run) if columns else {}
        typed = {key: typed_value(value) for key, value in run.settings.items()}
        rows.append(
            {"name": found.pop("name")}
            | typed
            | {key: asked.get(key, found.get(key)) for key in columns}
            | {key: value for key, value in found.items() if key not in typed}
            | {"folder": str(run.folder)}
        )
    return pd.DataFrame(rows)
