"""A folder of images with a table, as a clinic would have it: for the tutorial, where no real images are at hand.

    python scripts/example_images.py my-images --images 800

Drawn, not photographed: `photos/*.jpg` and `lesions.csv` with a file, a diagnosis, a patient, age, sex and body part.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
from pathlib import Path

from fedskew.demo.generator import generate

COLUMNS = {"file": "image_id", "diagnosis": "dx", "patient": "lesion_id", "age": "age", "sex": "sex",
           "body part": "localization"}  # fmt: skip


def main() -> int:
    """Write the folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.folder.exists():
        print(f"{given.folder} is there already; name another folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        write_folder(generate(Path(scratch) / "made", images=given.images, seed=given.seed), given.folder)
    print(f"{given.folder}: {given.images} drawn images and lesions.csv")
    return 0


def write_folder(made: Path, folder: Path) -> None:
    """A generated data set as a clinic's folder."""
    with (made / "HAM10000_metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    images = {path.stem: path for path in made.rglob("*.jpg")}
    (folder / "photos").mkdir(parents=True)
    with (folder / "lesions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for row in rows:
            name = f"{row['image_id']}.jpg"
            shutil.move(images[row["image_id"]], folder / "photos" / name)
            table.writerow([name, *(row[column] for column in list(COLUMNS.values())[1:])])


if __name__ == "__main__":
    sys.exit(main())
