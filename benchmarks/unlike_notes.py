"""How often `predict` calls a picture unlike its training's: real test pictures (false alarms), and others.

    python benchmarks/unlike_notes.py /path/to/HAM10000 [--seeds 0 1 2] [--image-size 64] [--images 400]

For each seed of the split the reference is made of the open images, as a run's server does, and of 250 and 100 of them;
false alarms are counted on the test images and on those of the nodes. The others: pages of text, noise, and the test
pictures grey, inverted, with red and blue exchanged, turned in hue, darker and brighter. Figures are shares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from timing import finish, parser

from fedskew.config.schema import DataConfig
from fedskew.data.decode import Decoded
from fedskew.data.reference import Reference, measure
from fedskew.learning.datasets import DataSet, divide_open, open_data, split_server

FEWER = (250, 100)  # open images
OWN = DataConfig(source="folder", test=0.2, open=0.1)
LETTERS = list("abcdefghij klmnopqr stuvwxyz ")


def pages(count: int, edge: int, random: np.random.Generator) -> np.ndarray:
    """Lines of letters on nearly white paper: uint8 [count, edge, edge, 3]."""
    made = []
    for _ in range(count):
        page = Image.new("RGB", (600, 800), (250, 250, 248))
        draw = ImageDraw.Draw(page)
        for line in range(40, 760, 14):
            draw.text((40, line), "".join(random.choice(LETTERS, random.integers(30, 80))), fill=(20, 20, 25))
        made.append(np.asarray(page.resize((edge, edge), Image.Resampling.LANCZOS)))
    return np.stack(made)


def turned_in_hue(picture: np.ndarray, by: int) -> np.ndarray:
    """A picture with its hue turned by `by` / 256 of the circle."""
    hue, *others = Image.fromarray(picture).convert("HSV").split()
    turned = hue.point(lambda value: (value + by) % 256)
    return np.asarray(Image.merge("HSV", (turned, *others)).convert("RGB"))


def others(skin: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures that are no pictures of skin as the model knows it, by name."""
    random, edge = np.random.default_rng(seed), skin.shape[1]
    grey = (skin @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None].repeat(3, -1)
    coarse = random.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    yield "pages of text", pages(50, edge, random)
    yield "noise", random.integers(0, 256, (100, edge, edge, 3), dtype=np.uint8)
    yield "coarse noise", np.stack([np.asarray(Image.fromarray(one).resize((edge, edge), 3)) for one in coarse])
    yield "grey", grey
    yield "inverted", 255 - skin
    yield "red and blue exchanged", skin[..., ::-1]
    yield "hue turned by 120 degrees", np.stack([turned_in_hue(one, 85) for one in skin])
    yield "brightness 0.7", (skin * 0.7).astype(np.uint8)
    yield "brightness 0.4", (skin * 0.4).astype(np.uint8)
    yield "brightness 1.6", np.clip(skin * 1.6, 0, 255).astype(np.uint8)


def share(reference: Reference, pictures: np.ndarray, sides: np.ndarray) -> float:
    """The share of pictures, uint8 [N, edge, edge, 3] of sizes [N, 2], with a note."""
    noted = [bool(reference.notes(Decoded(*one, *size))) for one, size in zip(pictures[:, None], sides, strict=True)]
    return float(np.mean(noted))


def rows_of(data: DataSet, seed: int, most: int) -> Iterator[dict[str, Any]]:
    """A row for every size of the reference."""
    config = replace(OWN, split_seed=seed)
    split, random = split_server(data, config), np.random.default_rng(seed)
    known = random.permutation(divide_open(data, split, config)[0])
    pixels, sides = data.cached.images, data.cached.sides
    test, nodes = (np.sort(random.permutation(part)[:most]) for part in (split.test, split.clients))
    changed = dict(others(np.asarray(pixels[test]), seed))
    for images in (len(known), *(count for count in FEWER if count < len(known))):
        reference = measure(pixels, sides, known[:images])
        if reference is None:
            continue
        row = {"seed": seed, "reference": images}
        row |= {name: share(reference, pixels[part], sides[part]) for name, part in (("test", test), ("nodes", nodes))}
        usual = sides[test[:1]]
        yield row | {name: share(reference, shown, usual.repeat(len(shown), 0)) for name, shown in changed.items()}


def main() -> None:
    """Print the shares and keep them."""
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--image-size", type=int, default=64)
    options.add_argument("--images", type=int, default=400, help="of each kind at most")
    asked = options.parse_args()
    data = open_data(replace(OWN, dir=str(asked.data)), asked.image_size)
    rows = [row for seed in asked.seeds for row in rows_of(data, seed, asked.images)]
    finish("unlike_notes", rows, asked.out)


if __name__ == "__main__":
    main()
