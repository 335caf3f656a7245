"""Any split of a data set as it lies in a file: a table of image and part, JSON, or a folder for each part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedskew.data.archives import open_store
from fedskew.data.finder import is_image
from fedskew.data.samples import DataError
from fedskew.data.tables import Table, read_table

IMAGE_COLUMNS = ("image_id", "image", "isic_id", "image_name", "img_id", "filename", "file")
PART_COLUMNS = ("part", "split", "fold", "set", "subset", "partition")
_SHOWN = 3

Pairs = list[tuple[str, str]]  # image, part


def table_of(path: Path) -> Table:
    """A table file of any kind that data sets come with; raises `DataError` if it is none."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of a table")
    return read_table(open_store(path.parent), path.name)


def pick(table: Table, candidates: Sequence[str], given: str, what: str) -> str:
    """The column of a table that holds something.

    Args:
        given: by a person; empty: the first of the candidates that there is.

    Raises:
        DataError: there is no such column.
    """
    columns = [given.lower()] if given else candidates
    found = next((column for column in columns if column in table.columns), "")
    if not found:
        raise DataError(
            f"{table.name} has no column of {what} ({', '.join(columns)}); its columns are {', '.join(table.columns)}"
        )
    return found


def read_split_file(path: Path, known: Iterable[str], *, part_column: str = "", ignore_unknown: bool = False) -> Pairs:
    """Image and part of every entry of a split, in its order.

    Args:
        path: a CSV with a column of images and one of parts; JSON, a run's split.json or `{part: [image, …]}`; or a
            folder with a folder for each part. An image may be called by its file's name.
        known: ids of the images that the metadata tell of.
        part_column: of a CSV; empty: `PART_COLUMNS`.
        ignore_unknown: leave out images that are not known; otherwise they are an error.

    Raises:
        DataError: it is no split, or it names images that are not known, or an image twice.
    """
    pairs = _entries(path, part_column)
    ids = set(known)
    named = [(image if image in ids else _stem(image), part) for image, part in pairs]
    if strange := [image for image, _ in named if image not in ids]:
        if not ignore_unknown or len(strange) == len(named):
            raise DataError(
                f"{path}: {len(strange)} of {len(named)} images are not in the metadata ({_some(strange)}): give the "
                "metadata of all of them, or leave these out with --ignore-unknown"
            )
        named = [(image, part) for image, part in named if image in ids]
    counts = Counter(image for image, _ in named)
    if twice := [image for image, count in counts.items() if count > 1]:
        parts = " and ".join(part for image, part in named if image == twice[0])
        raise DataError(
            f"{path}: {len(twice)} images are there twice ({_some(twice)}; the first in {parts}): an image belongs to "
            "one part, so take out all but one of its entries"
        )
    return named


def _entries(path: Path, part_column: str) -> Pairs:
    if path.is_dir():
        pairs = list(_of_folders(path))
    elif path.suffix.lower() == ".json":
        pairs = list(_of_json(path))
    else:
        pairs = _of_table(table_of(path), part_column)
    if not pairs or any(not part for _, part in pairs):
        raise DataError(f"{path} is no split: expected images in parts, a table, JSON or a folder for each part")
    return pairs


def _of_table(table: Table, part_column: str) -> Pairs:
    image = pick(table, IMAGE_COLUMNS, "", "images")
    part = pick(table, PART_COLUMNS, part_column, "parts; name it with --part-column")
    pairs = [(row.required(image), row.required(part)) for row in table.rows]
    table.check()
    return pairs


def _of_json(path: Path) -> Iterator[tuple[str, str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from None
    parts = _of_run(content["ids"]) if isinstance(content, dict) and "ids" in content else content
    if not isinstance(parts, dict) or not all(_is_names(images) for images in parts.values()):
        raise DataError(f"{path} is no split: expected {{part: [image, …]}}, or the split.json of a run")
    for part, images in parts.items():
        yield from ((image, str(part)) for image in images)


def _of_run(ids: Any) -> Mapping[str, Any]:
    """The parts of a run's split.json; open images that a node trains on too count as that node's."""
    if not isinstance(ids, dict) or not isinstance(ids.get("parts"), list):
        return {}
    parts = {f"partition-{number}": part for number, part in enumerate(ids["parts"])}
    trained = {image for part in ids["parts"] if _is_names(part) for image in part}
    held = [image for image in ids.get("open", ()) if image not in trained]
    return {"test": ids.get("test"), "open": held, **parts}


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _of_folders(path: Path) -> Iterator[tuple[str, str]]:
    for name in open_store(path).names():
        part, slash, _ = name.partition("/")
        if slash and is_image(name):
            yield name, part


def _stem(image: str) -> str:
    """`ISIC_0024306` of `train/mel/ISIC_0024306.jpg`."""
    base = image.replace("\\", "/").rsplit("/", 1)[-1]
    return base.rpartition(".")[0] if is_image(base) else base


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
