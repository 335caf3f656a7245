"""A made-up data set in the shape of HAM10000, for demonstrations and tests where the real one is not at hand.

generate(Path("data/synthetic"), images=1000, seed=1)
"""

from __future__ import annotations

import csv
import glob
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from PIL import Image

from fedskew.data.samples import HAM10000_CLASSES, DataError
from fedskew.demo.render import draw_lesion, photograph

VERSION = 1  # raise it whenever the same settings would give another data set
STAMP = ".fedskew-synthetic.json"
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset")
MASKS = "HAM10000_segmentations_lesion_tschandl"
_SITES = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
_IMAGES_PER_LESION = (0.74, 0.17, 0.06, 0.03)  # shares of lesions with 1, 2, 3, 4 images
_QUALITY = 92


@dataclass(frozen=True)
class _Class:
    """How frequent a class is, whom it befalls, and where it was photographed (shares of `_SITES`)."""

    share: float
    age: float
    age_deviation: float
    places: tuple[str, ...]
    sites: tuple[float, ...]


# Like HAM10000, but with the rare classes raised to 3 % so that small sets hold enough of them.
_CLASSES = {
    "akiec": _Class(0.05, 67, 11, ("face", "face", "upper extremity", "scalp", "hand"), (0.80, 0.14, 0.00, 0.06)),
    "bcc": _Class(0.07, 67, 13, ("back", "face", "neck", "chest", "back"), (0.55, 0.35, 0.02, 0.08)),
    "bkl": _Class(0.12, 64, 14, ("face", "back", "lower extremity", "chest"), (0.45, 0.40, 0.10, 0.05)),
    "df": _Class(0.03, 51, 13, ("lower extremity", "lower extremity", "upper extremity"), (0.30, 0.45, 0.20, 0.05)),
    "mel": _Class(0.12, 60, 15, ("back", "upper extremity", "lower extremity", "face"), (0.30, 0.60, 0.03, 0.07)),
    "nv": _Class(0.57, 45, 16, ("back", "lower extremity", "trunk", "abdomen"), (0.13, 0.29, 0.54, 0.04)),
    "vasc": _Class(0.04, 51, 20, ("trunk", "abdomen", "lower extremity", "back"), (0.25, 0.40, 0.25, 0.10)),
}
_ANYWHERE = ("abdomen", "back", "chest", "ear", "face", "foot", "genital", "hand", "lower extremity", "neck",
             "scalp", "trunk", "upper extremity", "unknown")  # fmt: skip


def generate(directory: Path, *, images: int, seed: int, size: tuple[int, int] = (120, 90)) -> Path:
    """Write a synthetic data set: metadata, images in two parts, lesion masks.

    The same arguments give the same data set. It is written beside `directory` and renamed when complete; if
    `directory` already holds it, nothing is done.

    Args:
        directory: where it is to lie; must be absent or empty, or hold this very data set.
        images: how many; at least one for each of HAM10000's seven classes.
        seed: another seed gives other lesions.
        size: width and height in pixels.

    Returns:
        `directory`.

    Raises:
        DataError: too few images, a size below 32 pixels, or `directory` holds something else.
    """
    directory = Path(directory)
    if images < len(HAM10000_CLASSES) or min(size) < 32 or seed < 0:
        raise DataError(f"synthetic data: expected at least {len(HAM10000_CLASSES)} images, 32 pixels and a seed "
                        f">= 0, got {images} images, {size[0]} x {size[1]} pixels, seed {seed}")  # fmt: skip
    settings = {"version": VERSION, "images": images, "seed": seed, "size": list(size)}
    if _holds(directory, settings):
        return directory
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(directory.with_name(f".{directory.name}.lock")):
            if not _holds(directory, settings):  # another process may have written it meanwhile
                _write_whole(directory, settings, images, seed, size)
    except OSError as error:
        raise DataError(f"synthetic data cannot be written to {directory}: {error}; free space there, or set "
                        "FEDSKEW_HOME to a folder that can be written") from error  # fmt: skip
    return directory


def _holds(directory: Path, settings: dict[str, object]) -> bool:
    """Whether the folder holds this data set already; DataError if it holds something else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    stamp = directory / STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == json.dumps(settings):
        return True
    raise DataError(f"{directory} already holds something other than this synthetic data set; "
                    "remove it or choose another directory")  # fmt: skip


def _write_whole(directory: Path, settings: dict[str, object], images: int, seed: int, size: tuple[int, int]) -> None:
    """Write beside the directory, then rename: nobody ever sees half a data set."""
    prefix = f".{directory.name}.tmp-"
    for remains in directory.parent.glob(f"{glob.escape(prefix)}*"):  # of a process that was killed
        shutil.rmtree(remains)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    try:
        _write(scratch, images, seed, size)
        (scratch / STAMP).write_text(json.dumps(settings), encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp's folders are private
        scratch.rename(directory)  # takes the place of an empty folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(folder: Path, images: int, seed: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng([seed, VERSION])
    lesions = _lesions(images, rng)
    numbers = iter(rng.permutation(images))  # so that ids tell nothing of the class
    parts = [folder / "HAM10000_images_part_1", folder / "HAM10000_images_part_2"]
    for part in (*parts, folder / MASKS):
        part.mkdir()
    rows = []
    for lesion_number, (label, count) in enumerate(lesions):
        lesion_rng = np.random.default_rng([seed, VERSION, lesion_number])
        lesion = draw_lesion(label, lesion_rng)
        person = _person(label, lesion_rng)
        for _ in range(count):
            number = int(next(numbers))
            image_id = f"SYN_{number:07d}"
            picture, mask = photograph(lesion, lesion_rng, size)
            part = parts[0] if number < (images + 1) // 2 else parts[1]
            Image.fromarray(picture).save(part / f"{image_id}.jpg", quality=_QUALITY)
            Image.fromarray(mask).save(folder / MASKS / f"{image_id}_segmentation.png")
            rows.append((f"SYNL_{lesion_number:07d}", image_id, label, *person))
    with open(folder / "HAM10000_metadata.csv", "w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows))


def _lesions(images: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Lesions as (class, number of images), in random order; every class has at least one."""
    lesions: list[tuple[str, int]] = []
    for label, count in _class_counts(images).items():
        while count:
            taken = min(count, 1 + int(rng.choice(len(_IMAGES_PER_LESION), p=_IMAGES_PER_LESION)))
            lesions.append((label, taken))
            count -= taken
    return [lesions[place] for place in rng.permutation(len(lesions))]


def _class_counts(images: int) -> dict[str, int]:
    """Images per class: one each, the rest by share, what rounding leaves to the most frequent."""
    spare = images - len(_CLASSES)
    counts = {label: 1 + int(kind.share * spare) for label, kind in _CLASSES.items()}
    counts["nv"] += images - sum(counts.values())
    return counts


def _person(label: str, rng: np.random.Generator) -> tuple[str, str, str, str, str]:
    """dx_type, age, sex, localization, dataset of a lesion, with the gaps of the real table."""
    kind = _CLASSES[label]
    age = 5 * round(float(np.clip(rng.normal(kind.age, kind.age_deviation), 0, 85)) / 5)
    place = _pick(kind.places if rng.random() < 0.7 else _ANYWHERE, rng)
    confirmed = "histo" if label in ("mel", "bcc", "akiec") else _pick(("histo", "follow_up", "consensus"), rng)
    return (
        confirmed,
        "" if rng.random() < 0.02 else f"{age}.0",
        "unknown" if rng.random() < 0.02 else _pick(("male", "female"), rng),
        place,
        _SITES[int(rng.choice(len(_SITES), p=kind.sites))],
    )


def _pick(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]
