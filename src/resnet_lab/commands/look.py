"""Training images before and after augmentation, as the first epochs see them."""

import argparse
from datetime import datetime
from pathlib import Path

from resnet_lab.commands import _configs, add_overrides, describe, refuse_existing
from resnet_lab.config.errors import UserError
from resnet_lab.language import LANGUAGES
from resnet_lab.screen import console

MOST_PICTURES = 600
OF_THE_SOURCE = ("data=", "data.root=", "data.cache_dir=")  # what the title says otherwise


def add(parser: argparse.ArgumentParser) -> None:
    describe(
        parser,
        "Draws some training images of a data config, and beside each what augmentation makes of "
        "it in epoch 1, 2, 3, ...: the very pictures that a training with this config and seed "
        "would see. Only the normalisation is undone. Where images are mixed, their shares of two "
        "classes stand below. Nothing is trained.",
        "resnet-lab look data=cifar10 augment=trivial\n"
        "resnet-lab look data=cifar10 augment=none,trivial,mixup,cutmix --images 3\n"
        "resnet-lab look data=imagefolder data.root=photos augment=rand "
        "data.augment.rand_magnitude=5,9,15 --out rand.png",
    )
    add_overrides(parser, "a config as for train.py; of several values each is drawn")
    parser.add_argument("--images", type=int, default=6, metavar="N", help="rows (6)")
    parser.add_argument("--versions", type=int, default=7, metavar="N", help="epochs (7)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.png", help="a new file (outputs/analysis/look-DATE.png)"
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, default="en", help="of the picture's texts (en)"
    )


def run(options: argparse.Namespace) -> int:
    for option in ("images", "versions"):
        if (value := getattr(options, option)) < 1:
            raise UserError(f"--{option} {value}: must be 1 or more.")
    if options.out is not None and options.out.suffix.lower() != ".png":
        raise UserError(
            f"--out {options.out}: the picture is a PNG; name a file that ends in .png."
        )
    refuse_existing(options.out)
    configs = _configs.combinations(options.overrides)
    pictures = len(configs) * options.images * (1 + options.versions)
    if pictures > MOST_PICTURES:
        raise UserError(
            f"These are {pictures:,} pictures, too many for one file; give fewer values, --images "
            "or --versions."
        )

    from resnet_lab import charts
    from resnet_lab.analysis import look, look_picture
    from resnet_lab.language import translator
    from resnet_lab.run import build

    say = translator(options.language, look_picture.KOREAN)
    blocks = []
    for config in configs:
        module = build.build_data(build.follow_trunk(config.cfg))
        rows = look.rows(module, options.images, options.versions)
        label = ", ".join(f"{key}={value}" for key, value in config.own.items())
        blocks.append(look_picture.Block(label, rows))
    data = _configs.common(config.data for config in configs) or say("several data sets")
    title = say("Training images of {data}, as each epoch sees them", data=data)
    ways = [o for o in options.overrides if not o.startswith(OF_THE_SOURCE)]
    if ways and not configs[0].own:
        title += charts.shortened(f" ({' '.join(ways)})", 60)
    path = options.out or _new_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    charts.write_png(path, lambda: look_picture.draw(blocks, title, say))
    console.print(f"written     {path}", soft_wrap=True)
    return 0


def _new_file() -> Path:
    stem = f"look-{datetime.now():%Y-%m-%d_%H-%M-%S}"
    folder, number = Path("outputs/analysis"), 1
    path = folder / f"{stem}.png"
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.png"
    return path
