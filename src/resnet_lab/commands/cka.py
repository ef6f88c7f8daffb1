"""How alike the layers of one net, or of two, represent images (linear CKA)."""

import argparse
from typing import TYPE_CHECKING

from rich.table import Table

from resnet_lab.commands import _analysis, describe
from resnet_lab.config.errors import UserError
from resnet_lab.files import printable
from resnet_lab.screen import console

if TYPE_CHECKING:
    from torch import Tensor

    from resnet_lab.models.parts import Part


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Compares the outputs of all parts of a net (stem, blocks, head) on the same images: 1 "
        "where two parts represent them alike but for a rotation, 0 where they are unrelated. Of "
        "two runs also the parts of one with those of the other: plain and residual, or two "
        "seeds. Writes cka.png and cka.csv.",
        "resnet-lab cka RUN_DIR\nresnet-lab cka PLAIN RESIDUAL --images 1000 --language ko",
    )
    _analysis.add_runs(parser)
    _analysis.add_images(parser, 2000)
    _analysis.add_out(parser)


def run(options: argparse.Namespace) -> int:
    if len(options.run_dirs) > 2:
        raise UserError(f"{len(options.run_dirs)} runs are named; CKA compares one or two.")
    _analysis.refuse_filled(options.out)
    subjects = _analysis.subjects(options)

    from resnet_lab import charts
    from resnet_lab.analysis import similarity, similarity_picture
    from resnet_lab.analysis.subject import BATCH, titles
    from resnet_lab.data.cache import progress
    from resnet_lab.language import translator
    from resnet_lab.models.parts import parts

    say = translator(options.language, similarity_picture.KOREAN)
    similarity.check(subjects)
    n = len(subjects[0].labels)
    names = [printable(name) for name in titles([s.run for s in subjects], say)]
    nets = [parts(subject.net) for subject in subjects]
    batches = progress(similarity.grams_of(subjects), -(-n // BATCH), f"{n:,} images")
    matrix = similarity.cka(batches)

    # Of two nets: each with itself, then one with the other.
    ranges = [slice(0, len(nets[0])), slice(len(nets[0]), None)]
    pairs = [(0, 0), (1, 1), (0, 1)] if len(nets) > 1 else [(0, 0)]
    heats, rows = [], []
    for one, two in pairs:
        values = matrix[ranges[one], ranges[two]]
        stages = [part.stage for part in nets[one]], [part.stage for part in nets[two]]
        heats.append(similarity_picture.Heat(values.numpy(), (names[one], names[two]), stages))
        for part, line in zip(nets[one], values.tolist(), strict=True):
            for other, value in zip(nets[two], line, strict=True):
                rows.append([names[one], part.name, names[two], other.name, f"{value:.6f}"])
        means = similarity.stage_means(values, nets[one], nets[two])
        _show(names[one], names[two], means, nets[one], nets[two])
    folder = _analysis.result_folder(options, "cka")
    charts.write_png(folder / "cka.png", lambda: similarity_picture.draw(heats, n, say))
    _analysis.write_csv(folder / "cka.csv", "net part other_net other_part cka", rows)
    console.print(f"written     {folder}", soft_wrap=True)
    return 0


def _show(one: str, two: str, means: "Tensor", rows: "list[Part]", columns: "list[Part]") -> None:
    """Mean CKA of the parts of two stages."""
    title = f"{one}: mean CKA of its stages" if one == two else f"{one} (rows), {two} (columns)"
    table = Table(box=None, header_style="", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for stage in dict.fromkeys(part.stage for part in columns):
        table.add_column(printable(stage), justify="right")
    stages = dict.fromkeys(part.stage for part in rows)
    for stage, line in zip(stages, means.tolist(), strict=True):
        table.add_row(printable(stage), *(f"{value:.2f}" for value in line))
    console.print(title, soft_wrap=True)
    console.print(table)
    console.print()
