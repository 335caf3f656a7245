"""A manifest drafted from what lies in a folder: columns and values guessed, every guess a line to check."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from fedskew.data import class_folders, ham10000, isic
from fedskew.data.archives import open_store
from fedskew.data.finder import ImageFinder, is_image, other_formats_note
from fedskew.data.guesses import DIAGNOSES, PLACES, SEXES, columns_by_name, identifier, meaning, names_cases
from fedskew.data.samples import METADATA_FIELDS, VOCABULARIES, DataError, as_number
from fedskew.data.stores import Store
from fedskew.data.tables import Row, Table, header, read_table

_SUFFIXES = (".csv", ".tsv", ".tab", ".txt")
_TRIED = 300  # rows by which the image column is found
_MOST_VALUES = 60  # of a diagnosis or body site; of another column that is words
_MOST_WORDS = 20
_BINS = 5
_SHOWN = 5  # files in a comment
_UNDECIDED_LABEL = "What is still a comment needs a class of the run, or null to leave such images out"
_UNDECIDED_VALUE = "What stays a comment counts as unknown; values are"
_HEAD = """\
# Drafted by `fedskew manifest`: check every line, above all the diagnoses. All keys: docs/data.md.
"""


class _Found(NamedTuple):
    """The table that names most images, and in which column."""

    table: Table
    image: str
    images: int  # how many of the rows that were tried

    @property
    def rank(self) -> tuple[int, int]:
        """By which tables are compared."""
        return self.images, len(self.table.rows)


def draft_manifest(path: Path) -> str:
    """The text of a manifest for a folder or archive.

    Raises:
        DataError: it needs no manifest, or holds neither a table that names images nor folders by class.
    """
    store = open_store(path)
    return _draft(path, store) + "".join(f"# {note}\n" for note in other_formats_note(store.names()))


def _draft(path: Path, store: Store) -> str:
    for name, layout in (("HAM10000", ham10000), ("an ISIC challenge", isic)):
        if layout.find_tables(store):
            raise DataError(f"{path} has the layout of {name}, which is read as it is: it needs no manifest")
    found = _best_table(store)
    if found is not None:
        return _table_draft(found) + _unmatched(store, found)
    folders = class_folders.drafted(store)
    if not folders:
        raise DataError(
            f"{path}: no table (CSV, TSV) was found whose column names image files there, and no folders by class; "
            f"{_spreadsheets(store)}put table and images into one folder, and run this again"
        )
    text = _HEAD + "# No table: the images lie in folders by class, which this maps to the run's classes.\n"
    return text + _value_map("labels", folders, DIAGNOSES, _UNDECIDED_LABEL)


def _spreadsheets(store: Store) -> str:
    found = [name for name in store.names() if class_folders.is_spreadsheet(name)]
    return f"spreadsheets are not read: save {', '.join(found[:_SHOWN])} as CSV; " if found else ""


def _unmatched(store: Store, found: _Found) -> str:
    """Rows that name no file and files that no row names, as comments."""
    finder, folder = ImageFinder(store), found.table.name.rpartition("/")[0]
    keys = {row.values[found.image]: _key(finder, row.values[found.image], folder) for row in found.table.rows}
    absent = [value for value, key in keys.items() if not key]
    alone = sorted({name for name in store.names() if is_image(name)} - set(keys.values()))
    return _comment(absent, "rows name no image file that is there") + _comment(alone, "image files are in no row")


def _comment(names: Sequence[str], text: str) -> str:
    listed = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"# {len(names)} {text}: {listed}\n" if names else ""


def _key(finder: ImageFinder, value: str, folder: str) -> str:
    try:
        return finder.find(value, folder) if value else ""
    except DataError:
        return value  # several files of that name: reading the table tells


def _best_table(store: Store) -> _Found | None:
    finder, best = ImageFinder(store), None
    for name in store.names():
        if not name.lower().endswith(_SUFFIXES) or len(header(store, name)) < 2:
            continue
        try:
            table = read_table(store, name)
        except DataError:
            continue  # no table after all: a draft is made of the one that is
        found = _image_column(finder, table)
        if found is not None and (best is None or found.rank > best.rank):
            best = found
    return best


def _image_column(finder: ImageFinder, table: Table) -> _Found | None:
    folder = table.name.rpartition("/")[0]
    counts = {column: sum(bool(_key(finder, row.values[column], folder)) for row in table.rows[:_TRIED])
              for column in table.columns}  # fmt: skip
    column = max(counts, key=lambda column: counts[column], default="")
    return _Found(table, column, counts[column]) if column and counts[column] else None


def _table_draft(found: _Found) -> str:
    table = found.table
    tried = min(len(table.rows), _TRIED)
    keys = columns_by_name(column for column in table.columns if column != found.image)
    if "age" in keys and not _is_age(table, keys["age"]):
        del keys["age"]
    if "localization" not in keys and "site" in keys and _are_body_parts(table, keys["site"]):
        keys["localization"] = keys.pop("site")  # dermatology calls both the hospital and the body part a site
    lines = [
        f"file: {_quoted(table.name)}  # {len(table.rows)} rows",
        f"image: {_quoted(found.image)}  # names a file in {found.images} of the first {tried} rows",
        f"label: {_quoted(keys['label'])}" if "label" in keys else _no_label(table, found.image, keys),
    ]
    lines += [f"encoding: {table.encoding}"] if table.encoding != "utf-8" else []
    lines += [f"{key}: {_quoted(column)}  # {_filled(table, column)}" for key, column in keys.items() if key != "label"]
    if "patient" not in keys and "lesion" not in keys:
        lines.append("# patient:  # name the column, if there is one: without it pictures of one lesion may be both in "
                     "training and test")  # fmt: skip
    text = _HEAD + "\n".join(lines) + "\n"
    text += _maps(table, keys)
    seen = [key for key in METADATA_FIELDS if key in keys]
    return text + _further(table, [c for c in table.columns if c != found.image and c not in keys.values()], seen)


def _are_body_parts(table: Table, column: str) -> bool:
    """Whether most values of a column are parts of a body."""
    counts = _counts(table.rows, column)
    parts = sum(count for value, count in counts.items()
                if value.lower() in VOCABULARIES["localization"] or meaning(value, PLACES))  # fmt: skip
    return 2 * parts > counts.total()


def _maps(table: Table, keys: Mapping[str, str]) -> str:
    text = ""
    if "label" in keys:
        counts = _counts(table.rows, keys["label"], raw=True)
        text += _value_map("labels", counts, DIAGNOSES, _UNDECIDED_LABEL)
    for key, known in (("sex", SEXES), ("localization", PLACES)):
        if key in keys:
            valid = VOCABULARIES[key]
            counts = _counts(table.rows, keys[key])
            foreign = Counter({value: count for value, count in counts.items() if value.lower() not in valid})
            text += _value_map(f"{key}_values", foreign, known, f"{_UNDECIDED_VALUE} {', '.join(valid[1:])}")
    return text


def _value_map(key: str, counts: Counter[str], known: Mapping[str, tuple[str, ...]], undecided: str) -> str:
    """A map of the values that occur. Those whose meaning nobody can guess stay comments, after the word for it."""
    if not counts:
        return ""
    if len(counts) > _MOST_VALUES:
        return f"# {key}:  # {len(counts)} different values: is that the right column?\n"
    guesses = {value: meaning(value, known) for value in counts}
    lines = []
    for value, count in counts.most_common():
        guess = guesses[value]
        shown = f"# {_quoted(value)}:" if guess is None else f"{_quoted(value)}: {_quoted(guess)}"
        lines.append(f"  {shown}  # {count} rows")
    head = [f"# {undecided}."] if None in guesses.values() else []
    return "\n".join([*head, f"{key}:" if any(guesses.values()) else f"# {key}:", *lines]) + "\n"


def _further(table: Table, columns: Sequence[str], seen: Sequence[str]) -> str:
    """Columns that a run could use as metadata, as comments: its configuration has to name them too, and those of
    HAM10000's three (`seen`) that are to stay.
    """
    manifest, config, unused = [], [], []
    for column in columns:
        if names_cases(column):
            unused.append(column)
            continue
        counts = _counts(table.rows, column)
        numbers = [number for value in counts.elements() if (number := as_number(value)) is not None]
        name = identifier(column)
        if len(counts) > _MOST_WORDS // 2 and len(numbers) >= 0.95 * counts.total() and len(set(numbers)) > 1:
            manifest.append(f"#   {name}: {{column: {_quoted(column)}, numbers: true}}  # {_filled(table, column)}")
            config.append(f"#     {name}: {{weight: 0.05, bins: {_bins(numbers)}}}  # by the quantiles of this table")
        elif 2 <= len(counts) <= _MOST_WORDS and counts.total() > len(counts):
            manifest.append(f"#   {name}: {{column: {_quoted(column)}}}  # {_filled(table, column)}")
            values = ", ".join(_quoted(value.lower()) for value in dict.fromkeys(v.lower() for v in sorted(counts)))
            config.append(f"#     {name}: {{weight: 0.05, values: [{values}]}}")
        else:
            unused.append(column)
    text = f"# not used: {', '.join(unused)}\n" if unused else ""
    if manifest:
        text += "# Further columns that a model can see beside the image:\n# metadata:\n" + "\n".join(manifest) + "\n"
        text += "# They must stand in the configuration of the run too (--config FILE), the same at all hospitals:\n"
        kept = [f"#     {name}: {{weight: 0.05}}" for name in seen]
        text += "# model:\n#   metadata:\n" + "\n".join([*kept, *config]) + "\n"
    return text


def _no_label(table: Table, image: str, keys: Mapping[str, str]) -> str:
    left = [
        c
        for c in table.columns
        if c not in (image, *keys.values()) and 2 <= len(_counts(table.rows, c)) <= _MOST_VALUES
    ]
    return f"label:  # which column holds the diagnosis? perhaps {', '.join(left) or 'none of these'}"


def _is_age(table: Table, column: str) -> bool:
    ages = [as_number(value) for value in _counts(table.rows, column).elements()]
    return sum(age is not None and 0 <= age <= 130 for age in ages) > len(ages) / 2


def _counts(rows: Sequence[Row], column: str, *, raw: bool = False) -> Counter[str]:
    """How often each value occurs; without `raw`, those that say that nothing is known do not count."""
    values = (row.values[column] if raw else row.text(column) for row in rows)
    return Counter(value for value in values if value is not None)


def _filled(table: Table, column: str) -> str:
    counts = _counts(table.rows, column)
    return f"{counts.total()} of {len(table.rows)} rows have a value, {len(counts)} different ones"


def _bins(numbers: Sequence[float]) -> str:
    """Lower ends that hold about equally many values, the first at or below the smallest; rounded to two digits, or
    to as many as it takes to keep them apart (years of birth)."""
    exact = np.quantile(numbers, np.arange(_BINS) / _BINS)  # [_BINS]
    rounded = ([float(f"{end:.{digits}g}") for end in exact] for digits in range(2, 17))
    ends = next((r for r in rounded if len(set(r)) == len(set(exact))), exact.tolist())
    ends[0] = min(0.0, np.floor(min(numbers)))
    return json.dumps([int(end) if float(end).is_integer() else end for end in sorted(set(map(float, ends)))])


def _quoted(text: str) -> str:
    """Text as YAML that reads back as this text."""
    plain = re.fullmatch(r"\w[\w ./-]*", text) and yaml.safe_load(text) == text and text == text.strip()
    return text if plain else json.dumps(text, ensure_ascii=False)
