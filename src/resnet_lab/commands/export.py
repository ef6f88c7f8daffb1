"""`resnet-lab export`: a run's net as a file that needs none of this project."""

import hashlib
import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from resnet_lab.config.errors import UserError
from resnet_lab.data.augment import normalise, scale_and_shift
from resnet_lab.data.decode import evaluation_zoom
from resnet_lab.run.folder import write_json
from resnet_lab.run.load import Finished, load_run
from resnet_lab.screen import console

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
BATCH = Dim("batch", min=1)
BATCHES = (1, 2, 7)  # the exported net has to agree on each of these batch sizes
# Of the largest logit: what float32 sums may differ by when they are added in another order.
TOLERANCE = 1e-4

Run = Callable[[Tensor], Tensor]


def export(
    run_dir: Path,
    kind: str,
    out: Path | None = None,
    checkpoint: Path | None = None,
    trust: Sequence[str] = (),
) -> Path:
    """Write a run's net in float32, for batches of any size; returns the file's path.

    kind: "onnx", or "torch_export" (`torch.export.load` reads it).
    out: the file; None is export/<checkpoint>.onnx or .pt2 in the run folder.

    Beside it <file>.json says how an image becomes its input and what its outputs mean. Neither
    overwrites anything. Before the file gets its name it is opened by onnxruntime or torch, and
    its outputs are compared with the net's; ValueError, and no file, where they differ.
    """
    missing = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind} needs the package {missing[0]}; pip install 'resnet-lab[onnx]' "
            "(in a clone: pip install -e '.[onnx]')."
        )
    if out is not None and out.suffix != SUFFIX[kind]:
        raise UserError(f"--out {out}: with --format {kind} its name must end in {SUFFIX[kind]}.")
    run = load_run(run_dir, checkpoint, trust=trust)
    path = out or run_dir / "export" / f"{run.checkpoint.stem}{SUFFIX[kind]}"
    described = path.with_name(f"{path.name}.json")
    for there in (path, described):
        if there.exists():
            raise UserError(f"{there} is there already; remove it, or name another with --out.")
    path.parent.mkdir(parents=True, exist_ok=True)
    net = run.net.to(memory_format=torch.contiguous_format)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        program = torch.export.export(net, (_images(run, 2),), dynamic_shapes=({0: BATCH},))
        exported = SAVE_AND_OPEN[kind](program, part)
        difference = _check(run, net, exported)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    write_json(described, describe(run, kind, path, difference))
    console.print(f"exported    {path}", soft_wrap=True)
    console.print(f"described   {described}", soft_wrap=True)
    console.print(
        f"checked     largest difference of a logit {difference:.1e}, on batches of "
        f"{', '.join(map(str, BATCHES))} images"
    )
    return path


def _onnx(program: ExportedProgram, path: Path) -> Run:
    import onnxruntime

    converted = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),  # else the axis gets torch's own name for it
    )
    assert converted is not None
    converted.save(path, external_data=False)  # one file, weights inside
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def _torch_export(program: ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    module: Run = torch.export.load(path).module()
    return module


SAVE_AND_OPEN: dict[str, Callable[[ExportedProgram, Path], Run]] = {
    "onnx": _onnx,
    "torch_export": _torch_export,
}


def _images(run: Finished, n: int) -> Tensor:
    """float32 [n, 3, image_size, image_size]: n pictures of noise, normalised as the run does."""
    data = run.cfg.data
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, data.image_size, data.image_size, 3), generator=generator)
    scale, shift = scale_and_shift(data.mean, data.std, torch.device("cpu"))
    return normalise(pixels.to(torch.uint8), scale, shift).contiguous()


def _check(run: Finished, net: nn.Module, exported: Run) -> float:
    """The largest difference between a logit of the two; ValueError where it is too large."""
    largest = 0.0
    for n in BATCHES:
        images = _images(run, n)
        with torch.inference_mode():
            expected, found = net(images), exported(images)
        difference = float((expected - found).abs().max())
        if expected.shape != found.shape or not difference <= TOLERANCE * expected.abs().max():
            raise UserError(
                f"the exported net gives other logits than the run's (a difference of "
                f"{difference:.1e} on {n} images); the file was removed."
            )
        largest = max(largest, difference)
    return largest


def describe(run: Finished, kind: str, path: Path, difference: float) -> dict[str, Any]:
    """All that somebody needs who has the exported file and nothing else."""
    data = run.cfg.data
    size = data.image_size
    with run.checkpoint.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    packages = ("torch", *PACKAGES[kind])
    return {
        "file": path.name,
        "format": kind,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", 3, size, size],
            "layout": "batch, channels (red, green, blue), rows from the top, columns",
        },
        "preprocessing": [
            "turn the picture upright by its EXIF orientation and convert it to 8-bit RGB, "
            "transparent pixels over white",
            f"cut out the central square whose side is {evaluation_zoom(size)} of the shorter side",
            f"resize it to {size} x {size} pixels, bilinear, antialiased (Pillow's BILINEAR); a "
            "picture of this size stays as it is",
            "divide by 255, subtract mean, divide by std, channel by channel",
        ],
        "image_size": size,
        "central_share": evaluation_zoom(size),
        "mean": list(data.mean),
        "std": list(data.std),
        "output": {
            "name": "logits",
            "dtype": "float32",
            "shape": ["batch", len(run.class_names)],
            "meaning": "softmax over the last axis gives the probabilities of class_names",
        },
        "class_names": run.class_names,
        "run": run.run_dir.resolve().name,
        "model": run.result.get("model"),
        "checkpoint": run.checkpoint.name,
        "checkpoint_sha256": checksum,
        "largest_difference": difference,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
    }
