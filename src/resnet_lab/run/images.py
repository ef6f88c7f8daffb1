"""Images of a finished run's data, for whoever evaluates its net."""

from resnet_lab.config.errors import UserError
from resnet_lab.data.sources import ImageFolder
from resnet_lab.run.load import Finished


def open_split(run: Finished, split: str, most: int | None = None) -> int:
    """Set the run's datamodule up for one split, of which alone the images need to be there.

    Args:
        split: "train", "val" or "test".
        most: how many images of it, evenly spaced; None is all.

    Returns:
        How many images `run.datamodule.eval_dataloader(split)` gives.

    Raises:
        UserError: there are none, or they are of other classes than those the run knows.
    """
    data = run.datamodule
    data.batch_size = 1  # no training batch is made, for which other data may be too few
    if split == "test":  # then nothing needs to be cut from the training images
        data.train_size, data.val_size = None, 0
    if isinstance(data.source, ImageFolder):
        if data.source.brings("test"):
            data.test_size = None  # as in training: then nothing is cut for it
        data.source = data.source.to_evaluate(split, data.test_size is not None)
    if most is not None:
        data.thin(split, most)
    data.setup("test" if split == "test" else "fit")
    known = run.result.get("class_names", data.class_names)  # earlier runs did not keep them
    if data.class_names != known:
        raise UserError(
            f"the run knows the classes {_some(known)}, but the data has "
            f"{_some(data.class_names)}; their figures would mean nothing."
        )
    n = {"train": data.n_train, "val": data.n_val, "test": data.n_test}[split]
    if not n:
        raise UserError(f"--split {split}: this run has no such images (data.val_size=0).")
    return n


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", ... ({len(names)})" if len(names) > 10 else "")
