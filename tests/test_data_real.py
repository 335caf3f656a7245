"""The real HAM10000, where a copy is at hand (by path only: its images are never part of this repository)."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedskew.data.cache import build_cache
from fedskew.data.samples import (
    HAM10000_CLASSES,
    VOCABULARIES,
    encode_labels,
    encode_metadata,
    unknown_values,
)
from fedskew.data.sources import open_source
from fedskew.data.splits import check_disjoint, partition, split_samples

SHARED = Path(__file__).resolve().parents[2] / "shared/ham10000/ham10000_200x150.tar.gz"
PATH = Path(os.environ.get("FEDSKEW_HAM10000", SHARED))
pytestmark = pytest.mark.skipif(not PATH.exists(), reason=f"no HAM10000 at {PATH}; set FEDSKEW_HAM10000")


@pytest.fixture(scope="module")
def source():
    return open_source(PATH)


def test_counts(source):
    if PATH == SHARED:
        assert len(source.samples) == 8516
        assert len({sample.lesion_id for sample in source.samples}) == 6350
    assert source.missing == ()


def test_every_value_is_known(source):
    assert unknown_values(source.samples, VOCABULARIES) == {}
    assert np.bincount(encode_labels(source.samples, HAM10000_CLASSES), minlength=7).min() > 0
    metadata = encode_metadata(source.samples, VOCABULARIES)
    missing = Counter(field for sample in source.samples for field in ("sex", "age", "localization")
                      if getattr(sample, field) is None)  # fmt: skip
    assert (metadata == 0).sum(0).tolist() == [missing["sex"], missing["age"], missing["localization"]]


def test_federation_of_the_four_sites(source):
    split = split_samples(source.samples, test=0.15, open=0.1, unit="lesion", seed=1)
    parts = partition(source.samples, split.clients, nodes=4, kind="site", alpha=1, unit="lesion", seed=1)
    check_disjoint(source.samples, split.test, split.open, *parts, unit="lesion")
    main_sites = [Counter(source.samples[i].site for i in part).most_common(1)[0][0] for part in parts]
    assert main_sites == ["rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"]
    assert abs(len(split.test) / len(source.samples) - 0.15) < 0.01


def test_every_image_is_readable(source, tmp_path):
    cached = build_cache(source, size=72, fit="squash", directory=tmp_path)
    assert cached.readable.all()
    assert 100 < cached.images.mean() < 200
