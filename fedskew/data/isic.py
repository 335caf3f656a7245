"""The layout of the ISIC challenges: a one-hot ground truth, and metadata and lesion groupings beside it.

`ISIC2018_Task3_*_GroundTruth.csv` or `ISIC_2019_*_GroundTruth.csv` have the columns image, MEL, NV, ...; a label
is the lower-case name of the column that is 1. Optional: `*_Metadata.csv` (image, age_approx,
anatom_site_general, lesion_id, sex) and `*_LesionGroupings.csv` (image, lesion_id).
"""

from __future__ import annotations

from fedskew.data.samples import DataError, Sample
from fedskew.data.stores import Store
from fedskew.data.tables import Row, Table, header, read_table

LOOKED_FOR = "ISIC challenge: *_GroundTruth.csv with the columns image, MEL, NV, ... (one-hot)"


def find_tables(store: Store) -> tuple[str, ...]:
    """Ground truth first, then the tables beside it; empty if there is no ground truth.

    Raises:
        DataError: the store holds the ground truth of several data sets.
    """
    truths = [n for n in _tables(store, "groundtruth") if {"image", "mel", "nv"} <= set(header(store, n))]
    if not truths:
        return ()
    if len(truths) > 1:
        raise DataError(f"{store.path} holds several ground truths ({', '.join(truths)}); "
                        "give the path of a folder with one of them")  # fmt: skip
    beside = [n for kind in ("metadata", "lesiongroupings") for n in _tables(store, kind)]
    same_split = [n for n in beside if _split_of(n) == _split_of(truths[0])]
    return (truths[0], *(n for n in same_split if "image" in header(store, n)))


def parse(store: Store, tables: tuple[str, ...]) -> tuple[list[Sample], list[str]]:
    """The samples of the ground truth, their `image` still empty; and what is worth knowing of the tables.

    Raises:
        DataError: a row of the ground truth does not have exactly one class.
    """
    truth = read_table(store, tables[0])
    truth.need("image")
    known: dict[str, list[Row]] = {}
    beside = [read_table(store, name) for name in tables[1:]]
    for row in (row for table in beside for row in table.rows):
        known.setdefault(row.values["image"], []).append(row)
    samples = [_sample(truth, row, known.get(row.values["image"], [])) for row in truth.rows]
    for table in (truth, *beside):
        table.check()
    return samples, [note for table in (truth, *beside) for note in table.notes()]


def _sample(truth: Table, row: Row, known: list[Row]) -> Sample:
    image_id = row.required("image")

    def first(column: str) -> Row:
        return next((other for other in known if other.text(column) is not None), row)

    return Sample(
        image_id=image_id,
        lesion_id=first("lesion_id").text("lesion_id") or image_id,
        label=_label(truth, row),
        age=first("age_approx").age("age_approx"),
        sex=first("sex").word("sex"),
        localization=first("anatom_site_general").word("anatom_site_general"),
        site=first("dataset").text("dataset"),
        image="",
    )


def _label(truth: Table, row: Row) -> str:
    hot = [column for column in truth.columns if column != "image" and row.values[column] in ("1", "1.0")]
    if len(hot) != 1:
        row.fault(f"{len(hot)} classes are 1 ({', '.join(hot) or 'none'}), expected exactly one; "
                  "delete the row or correct it")  # fmt: skip
        return ""
    return hot[0]


def _tables(store: Store, kind: str) -> list[str]:
    bases = ((name, name.rsplit("/", 1)[-1].lower()) for name in store.names())
    return [name for name, base in bases if kind in base and base.endswith(".csv")]


def _split_of(name: str) -> str:
    """`training`, `test` or `validation`: tables of another split of the challenge do not belong together."""
    base = name.rsplit("/", 1)[-1].lower()
    return next((split for split in ("training", "validation", "test") if split in base), "")
