"""Vocabularies and encodings."""

import dataclasses

import numpy as np
import pytest

from fedskew.data.samples import (
    HAM10000_CLASSES,
    VOCABULARIES,
    DataError,
    Sample,
    encode_labels,
    encode_metadata,
    nearest_name,
    unknown_values,
)

KNOWN = Sample("i1", "l1", "mel", 45.0, "female", "back", "site", "i1.jpg")


def test_metadata_are_encoded_in_the_order_sex_age_localization():
    code = encode_metadata([KNOWN], VOCABULARIES)
    assert code.dtype == np.int64
    assert code.shape == (1, 3)
    fields = ("sex", "age", "localization")
    assert [VOCABULARIES[f][i] for f, i in zip(fields, code[0], strict=True)] == ["female", "45", "back"]


@pytest.mark.parametrize(
    ("age", "name"),
    [(0, "0"), (4.9, "0"), (5, "5"), (44.9, "40"), (90, "90"), (95, "95+"), (100, "95+"), (120, "95+")],
)
def test_ages_fall_into_bins_of_five_years(age, name):
    code = encode_metadata([dataclasses.replace(KNOWN, age=float(age))], VOCABULARIES)
    assert VOCABULARIES["age"][code[0, 1]] == name


def test_missing_and_foreign_values_are_unknown_but_only_foreign_ones_are_counted():
    samples = [
        dataclasses.replace(KNOWN, age=None, sex=None, localization=None),
        dataclasses.replace(KNOWN, sex="diverse", localization="tail"),
        dataclasses.replace(KNOWN, localization="tail"),
    ]
    assert encode_metadata(samples, VOCABULARIES)[0].tolist() == [0, 0, 0]
    assert encode_metadata(samples, VOCABULARIES)[1, 0] == 0
    assert unknown_values(samples, VOCABULARIES) == {"sex": {"diverse": 1}, "localization": {"tail": 2}}


def test_age_zero_is_an_age():
    assert encode_metadata([dataclasses.replace(KNOWN, age=0.0)], VOCABULARIES)[0, 1] == 1


def test_vocabularies_begin_with_unknown_and_hold_what_ham10000_has():
    assert all(values[0] == "unknown" for values in VOCABULARIES.values())
    assert list(VOCABULARIES["localization"][1:]) == sorted(VOCABULARIES["localization"][1:])
    assert len(VOCABULARIES["localization"]) == 15
    assert VOCABULARIES["age"][-2:] == ("90", "95+")


def test_a_vocabulary_without_unknown_is_refused():
    with pytest.raises(DataError, match="must begin with 'unknown'"):
        encode_metadata([KNOWN], VOCABULARIES | {"sex": ("female", "male")})


def test_no_samples_give_empty_arrays():
    assert encode_metadata([], VOCABULARIES).shape == (0, 3)
    assert encode_labels([], HAM10000_CLASSES).shape == (0,)


def test_labels():
    samples = [dataclasses.replace(KNOWN, label=label) for label in HAM10000_CLASSES]
    assert encode_labels(samples, HAM10000_CLASSES).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("label", "near"),
    [("melanoma", "mel"), ("NV", "nv"), ("vas", "vasc"), ("akiek", "akiec"), ("quux", ""), ("DF", "df")],
)
def test_the_nearest_class_is_named(label, near):
    assert nearest_name(label, HAM10000_CLASSES) == near
    with pytest.raises(DataError) as error:
        encode_labels([KNOWN, dataclasses.replace(KNOWN, label=label)], HAM10000_CLASSES)
    assert (f"{label!r} (1 images, nearest class {near!r})" in str(error.value)) is bool(near)


def test_all_foreign_labels_are_told_with_their_numbers():
    labels = ["scc", "ak", "ak", "mel", "x1", "x2", "x3", "x4", "x5"]
    with pytest.raises(DataError) as error:
        encode_labels([dataclasses.replace(KNOWN, label=label) for label in labels], HAM10000_CLASSES)
    text = str(error.value)
    assert "(model.classes)" in text
    assert "'scc' (1 images" in text
    assert "'ak' (2 images, nearest class 'akiec')" in text
    assert "and 2 more" in text
    assert "'mel' (" not in text


def test_a_foreign_label_is_named_with_its_image_and_the_classes():
    with pytest.raises(DataError, match=r"image i1.*'scc'.*akiec, bcc"):
        encode_labels([dataclasses.replace(KNOWN, label="scc")], HAM10000_CLASSES)
