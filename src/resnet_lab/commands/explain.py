"""Heat maps of what a net looks at in its right and wrong answers (Grad-CAM)."""

import argparse
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.screen import console

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_lab.analysis.subject import Subject

NAME = 16  # letters of a class below an image
STATISTICS = 250  # images for the batch norms of random weights


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Draws the test images that the net gets wrong with the highest confidence, and those that "
        "it gets right with the lowest: each with the evidence for the predicted class and for the "
        "true one (for right answers: the second likeliest). Writes gradcam.png and gradcam.csv. "
        "Of any other images: resnet-lab predict RUN_DIR photo.jpg --explain FILE.png",
        "resnet-lab explain RUN_DIR\n"
        "resnet-lab explain RUN_DIR --rows 6 --randomised\n"
        "resnet-lab explain RUN_DIR --layer stage2 --images 1000",
    )
    _analysis.add_runs(parser, 1)
    _analysis.add_images(parser, None)
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="images of each kind (4)")
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="the layer whose output is weighed: stage2, stage2.1, or a module (the last one "
        "before pooling)",
    )
    parser.add_argument(
        "--randomised",
        action="store_true",
        help="a column more: the same map of a net with random weights, as a control",
    )
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if options.rows < 1:
        raise UserError(f"--rows {options.rows}: must be 1 or more.")
    _analysis.refuse_filled(options.out)
    (subject,) = _analysis.subjects(options)

    from resnet_lab import charts
    from resnet_lab.analysis import gradcam, gradcam_picture
    from resnet_lab.language import translator

    say = translator(options.language, gradcam_picture.KOREAN)
    net, pixels, labels = subject.net, subject.pixels, subject.labels
    layer = gradcam.find_layer(net, subject.normalised(pixels[:1]), options.layer)
    probabilities = subject.logits().softmax(dim=1)
    wrong, right = gradcam.extremes(probabilities, labels, options.rows)
    chosen = wrong + right
    # Beside the predicted class: the true one, or of a right answer the second.
    classes = probabilities[chosen].topk(2, dim=1).indices
    classes[: len(wrong), 1] = labels[wrong]
    images = subject.normalised(pixels[chosen])
    maps = gradcam.heat_maps(net, layer, images, classes)
    control = _control(subject, options.layer, images, classes) if options.randomised else None

    names = [printable(name) for name in subject.run.class_names]
    rows, table = [], []
    for place, number in enumerate(chosen):
        image, truth = pixels[number].numpy(), names[int(labels[number])]
        cells = [gradcam_picture.Cell(image, charts.shortened(truth, NAME))]
        for kind, heat in zip(classes[place].tolist(), maps[place].numpy(), strict=True):
            probability = float(probabilities[number, kind])
            below = f"{charts.shortened(names[kind], NAME)}  {probability:.0%}"
            cells.append(gradcam_picture.Cell(image, below, heat))
            table.append((number, truth, names[kind], probability, float(heat.max())))
        if control is not None:
            cells.append(gradcam_picture.Cell(image, "", control[place].numpy()))
        rows.append(cells)
    heads = [[say("image"), say("predicted class"), say(f"{w} class")] for w in ("true", "second")]
    if control is not None:
        heads = [[*head, say("predicted class,\nrandom weights")] for head in heads]
    blocks = [
        gradcam_picture.Block(say("wrong, the most confident"), heads[0], rows[: len(wrong)]),
        gradcam_picture.Block(say("right, the least confident"), heads[1], rows[len(wrong) :]),
    ]

    folder = _analysis.result_folder(options, "explain")
    charts.write_png(folder / "gradcam.png", lambda: gradcam_picture.draw(blocks, say))
    header = "image true_class class probability map_maximum"
    _analysis.write_csv(folder / "gradcam.csv", header, table)
    _show(table, len(labels), float((probabilities.argmax(dim=1) == labels).double().mean()))
    if control is not None:
        alike = gradcam.correlation(maps[:, 0], control)
        console.print(f"\nmaps of trained and random weights: mean correlation {alike:.2f}")
    console.print(f"\nwritten     {folder}", soft_wrap=True)
    return 0


def _control(
    subject: "Subject", layer: str | None, images: "Tensor", classes: "Tensor"
) -> "Tensor":
    """Maps of the predicted classes, [n, h, w], by the same net with random weights."""
    from resnet_lab.analysis import gradcam

    some = subject.normalised(subject.pixels[:STATISTICS])
    net = gradcam.random_twin(subject.run.cfg, some)
    found = gradcam.find_layer(net, some, layer)
    return gradcam.heat_maps(net, found, images, classes[:, :1])[:, 0]


def _show(table: list[tuple[int, str, str, float, float]], n: int, accuracy: float) -> None:
    """The classes with their probabilities, and what the strongest evidence is in logits."""
    console.print(f"{n:,} images, {accuracy:.1%} right\n", soft_wrap=True)
    shown = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("image", "true class", "evidence for", "probability", "largest in the map"):
        shown.add_column(title, justify="left" if "class" in title or "for" in title else "right")
    for number, truth, kind, probability, most in table:
        shown.add_row(str(number), truth, kind, f"{probability:.1%}", f"{most:.3g}")
    console.print(shown)
