"""The net as a file that needs none of this project, or as a folder for others who have it."""

import argparse
import hashlib
import importlib.util
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnet_lab.commands import add_run, check_trust, describe, refuse_existing
from resnet_lab.config.errors import UserError
from resnet_lab.data.decode import evaluation_zoom
from resnet_lab.files import write_json
from resnet_lab.screen import console

if TYPE_CHECKING:  # which import torch
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from resnet_lab.run.load import Finished

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
BATCHES = (1, 2, 7)  # the exported net has to agree on each of these batch sizes
# Of the largest logit: what float32 sums may differ by when they are added in another order.
TOLERANCE = 1e-4


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "onnx and torch_export write the net in float32, for batches of any size, and beside it "
        "FILE.json, which says how an image becomes its input and what its outputs mean. The file "
        "is opened again and its outputs are compared with the net's before the command says done. "
        "safetensors writes a small run folder for others: weights, config, figures and a README, "
        "without paths of this machine. Nothing is overwritten.",
        "resnet-lab export RUN_DIR --format onnx\n"
        "resnet-lab export RUN_DIR --format torch_export --out net.pt2\n"
        "resnet-lab export RUN_DIR --format safetensors --out my-net",
    )
    add_run(parser)
    parser.add_argument(
        "--format",
        choices=["onnx", "torch_export", "safetensors"],
        required=True,
        help="onnx: for onnxruntime and others (needs the extra [onnx]); torch_export: for "
        "torch.export.load; safetensors: a folder that every command and lab.load take as a run",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="a file (RUN_DIR/export/<checkpoint>.onnx or .pt2), or with safetensors a folder "
        "(RUN_DIR/export/<name of the run>)",
    )


def run(options: argparse.Namespace) -> int:
    """The file gets its name when its outputs are found to agree with the net's."""
    kind, out = options.format, options.out
    check_trust(options.run_dir, options.trust)
    if kind == "safetensors":
        return _publish(options)
    missing = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format {kind} needs the package {missing[0]}; pip install 'resnet-lab[onnx]' "
            "(in a clone: pip install -e '.[onnx]')."
        )
    if out is not None and out.suffix != SUFFIX[kind]:
        raise UserError(f"--out {out}: with --format {kind} its name must end in {SUFFIX[kind]}.")

    import torch
    from torch.export import Dim

    from resnet_lab.run.load import load_run

    run = load_run(options.run_dir, options.checkpoint, trust=options.trust)
    path = out or options.run_dir / "export" / f"{run.checkpoint.stem}{SUFFIX[kind]}"
    description = path.with_name(f"{path.name}.json")
    refuse_existing(path, description)
    path.parent.mkdir(parents=True, exist_ok=True)
    net = run.net.to(memory_format=torch.contiguous_format)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        batch = Dim("batch", min=1)
        program = torch.export.export(net, (_images(run, 2),), dynamic_shapes=({0: batch},))
        difference = _check(run, net, SAVE_AND_OPEN[kind](program, part))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    write_json(description, _description(run, kind, path, difference))
    console.print(f"exported    {path}", soft_wrap=True)
    console.print(f"described   {description}", soft_wrap=True)
    console.print(
        f"checked     largest difference of a logit {difference:.1e}, on batches of "
        f"{', '.join(map(str, BATCHES))} images"
    )
    return 0


def _publish(options: argparse.Namespace) -> int:
    from resnet_lab.commands._new_folder import refuse_existing_folder
    from resnet_lab.run.folder import RunFolder

    run_dir: Path = options.run_dir
    out = options.out or run_dir / "export" / run_dir.resolve().name
    refuse_existing_folder(out)
    status = RunFolder(run_dir).read_result().get("status", "finished")
    if status != "finished":  # what is missing altogether, `load_run` says
        raise UserError(f"{run_dir}: this run is {status}; only a finished one can be published.")

    from resnet_lab.commands._publish import publish
    from resnet_lab.run.load import load_run

    run = load_run(run_dir, options.checkpoint, trust=options.trust)
    tensors = publish(run, out, options.trust)
    size = sum(file.stat().st_size for file in out.iterdir())
    console.print(f"exported    {out} ({size / 1e6:.2f} MB)", soft_wrap=True)
    console.print(f"checked     all {tensors} tensors were read again, the same bit for bit")
    return 0


def _onnx(program: "ExportedProgram", path: Path) -> "Callable[[Tensor], Tensor]":
    import onnxruntime
    import torch

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


def _torch_export(program: "ExportedProgram", path: Path) -> "Callable[[Tensor], Tensor]":
    import torch

    torch.export.save(program, path)
    module: Callable[[Tensor], Tensor] = torch.export.load(path).module()
    return module


SAVE_AND_OPEN: dict[str, Any] = {"onnx": _onnx, "torch_export": _torch_export}


def _images(run: "Finished", n: int) -> "Tensor":
    """float32 [n, c, image_size, image_size]: n pictures of noise, normalised as the run does."""
    import torch

    from resnet_lab.data.augment import normalise, scale_and_shift

    data = run.cfg.data
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, (n, data.image_size, data.image_size, 3), generator=generator)
    scale, shift = scale_and_shift(data.mean, data.std, torch.device("cpu"))
    return normalise(pixels.to(torch.uint8), scale, shift).contiguous()


def _check(run: "Finished", net: "nn.Module", exported: "Callable[[Tensor], Tensor]") -> float:
    """The largest difference between a logit of the two; UserError where it is too large."""
    import torch

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


def _description(run: "Finished", kind: str, path: Path, difference: float) -> dict[str, Any]:
    """All that somebody needs who has the exported file and nothing else."""
    data = run.cfg.data
    size, channels = data.image_size, len(data.mean)
    layout = "red, green, blue" if channels == 3 else "gray"
    with run.checkpoint.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    packages = ("torch", *PACKAGES[kind])
    return {
        "file": path.name,
        "format": kind,
        "input": {
            "name": "images",
            "dtype": "float32",
            "shape": ["batch", channels, size, size],
            "layout": f"batch, channels ({layout}), rows from the top, columns",
        },
        "preprocessing": [
            "turn the picture upright by its EXIF orientation and convert it to 8-bit RGB, "
            "transparent pixels over white",
            f"cut out the central square whose side is {evaluation_zoom(size)} of the shorter side",
            f"resize it to {size} x {size} pixels, bilinear, antialiased (Pillow's BILINEAR); a "
            "picture of this size stays as it is",
            *([] if channels == 3 else ["convert it to gray (luma of ITU-R BT.601)"]),
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
