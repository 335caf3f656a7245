"""The layout of HAM10000: one table with `image_id` and `dx`, images named `<image_id>.jpg` anywhere around it.

Copies differ: the table is called `HAM10000_metadata` (no suffix), `.csv` or `.tab`, lacks `dataset` or not, and
the images lie in two folders or one. The same columns are used by `ISIC2018_Task3_Test_GroundTruth.csv` of
Harvard Dataverse. A label is the value of `dx`.
"""

from __future__ import annotations

from fedskew.data.samples import DataError, Sample
from fedskew.data.stores import Store
from fedskew.data.tables import Row, header, read_table

LOOKED_FOR = "HAM10000: a table HAM10000_metadata[.csv|.tab|.txt] with the columns image_id and dx"
_SUFFIXES = ("", ".csv", ".tab", ".tsv", ".txt")
_NAMES = ("ham10000_metadata", "metadata", "groundtruth")  # the first kind that is found counts


def find_tables(store: Store) -> tuple[str, ...]:
    """The name of the metadata table in a store; empty if there is none.

    Raises:
        DataError: several different tables could be meant.
    """
    for kind in _NAMES:
        found = [name for name in store.names() if _is_table_name(name, kind) and _has_columns(store, name)]
        if len({store.read(name, 2**30) for name in found}) > 1:
            raise DataError(f"{store.path} holds several metadata tables ({', '.join(found)}); "
                            "give the path of one data set, or remove all but one table")  # fmt: skip
        if found:
            return (min(found, key=lambda name: (name.count("/"), name)),)
    return ()


def parse(store: Store, tables: tuple[str, ...]) -> tuple[list[Sample], list[str]]:
    """The samples of the table, their `image` still empty; and what is worth knowing of it."""
    table = read_table(store, tables[0])
    table.need("image_id", "dx")
    samples = [_sample(row) for row in table.rows]
    table.check()
    return samples, table.notes()


def _sample(row: Row) -> Sample:
    image_id = row.required("image_id")
    return Sample(
        image_id=image_id,
        lesion_id=row.text("lesion_id") or image_id,  # alone in its lesion if nothing is known of it
        label=row.required("dx"),
        age=row.age("age"),
        sex=row.word("sex"),
        localization=row.word("localization"),
        site=row.text("dataset"),
        image="",
    )


def _is_table_name(name: str, kind: str) -> bool:
    base = name.rsplit("/", 1)[-1].lower()
    stem, dot, suffix = base.rpartition(".")
    return kind in (stem or base) and (dot + suffix if stem else "") in _SUFFIXES


def _has_columns(store: Store, name: str) -> bool:
    return {"image_id", "dx"} <= set(header(store, name))
