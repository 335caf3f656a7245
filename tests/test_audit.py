"""`fedskew audit-split`: what lies in several parts of any split, exactly counted, and what is no split."""

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.data.perceptual import THRESHOLD, close_pairs, perceptual_hash
from fedskew.data.site_split import Row, site_split

METADATA = """image_id,lesion_id,patient_id,dx
A1,L1,P1,mel
A2,L1,P1,mel
A3,L1,P1,mel
B1,L2,P1,nv
C1,L3,P2,nv
C2,L3,P2,nv
D1,,P3,bkl
E1,L5,P4,nv
"""
PARTS = {"A1": "train", "A2": "train", "A3": "test", "B1": "test", "C1": "train", "C2": "train", "D1": "test",
         "E1": "val"}  # fmt: skip


@pytest.fixture
def metadata(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text(METADATA)
    return path


def call(metadata, split, *words):
    result = CliRunner().invoke(app, ["audit-split", "--metadata", str(metadata), "--split", str(split), *words])
    return result.exit_code, result


def as_csv(path, parts, header="image,part", suffix=""):
    path.write_text(f"{header}\n" + "".join(f"{image}{suffix},{part}\n" for image, part in parts.items()))
    return path


def overlaps(found, kind):
    return {(one["part"], one["other"]): (one["images"], one["of"]) for one in found["shared"][kind]["overlaps"]}


def test_lesions_and_patients_in_several_parts_are_counted_both_ways(metadata, tmp_path):
    code, result = call(metadata, as_csv(tmp_path / "split.csv", PARTS), "--json")
    found = json.loads(result.stdout)
    assert (code, found["leaks"]) == (1, True)
    assert found["parts"] == {"train": 4, "test": 3, "val": 1}
    assert found["shared"]["lesion"]["groups"] == {"L1": {"train": ["A1", "A2"], "test": ["A3"]}}
    assert overlaps(found, "lesion") == {("test", "train"): (1, 3), ("train", "test"): (2, 4)}
    assert overlaps(found, "patient") == {("test", "train"): (2, 3), ("train", "test"): (2, 4)}, "B1 is of P1 too"
    assert found["notes"] == ["1 of 8 images have no lesion in the metadata: each counts as its own"]
    assert found["alike"] is None


def test_a_person_reads_the_largest_shares_first(metadata, tmp_path):
    code, result = call(metadata, as_csv(tmp_path / "split.csv", PARTS))
    lines = result.stdout.splitlines()
    assert code == 1
    assert lines[1] == "lesions: 1 are in several parts"
    assert lines[2] == "  2 of 4 images of train (50.0%) show a lesion of test"
    assert lines[5] == "  2 of 3 images of test (66.7%) show a patient of train"


def test_a_clean_split_ends_with_0(metadata, tmp_path):
    clean = PARTS | {"A3": "train", "B1": "train"}
    code, result = call(metadata, as_csv(tmp_path / "split.csv", clean))
    assert code == 0
    assert "lesions: none is in several parts" in result.stdout


@pytest.mark.parametrize("kind", ["names", "columns", "json", "run", "folders"])
def test_a_split_may_come_in_any_form(metadata, tmp_path, kind):
    path, words = tmp_path / "split", []
    if kind == "names":
        path = as_csv(tmp_path / "split.tsv", PARTS, suffix=".jpg")
    elif kind == "columns":
        path.write_text("isic_id;fold;fold2\n" + "".join(f"{i};x;{p}\n" for i, p in PARTS.items()))
        words = ["--part-column", "fold2"]
    elif kind == "json":
        path = tmp_path / "split.json"
        path.write_text(
            json.dumps({part: [i for i, p in PARTS.items() if p == part] for part in ("train", "test", "val")})
        )
    elif kind == "run":
        path = tmp_path / "split.json"
        ids = {"test": ["A3", "B1", "D1"], "open": ["E1", "C1"], "parts": [["A1", "A2"], ["C1", "C2"]]}
        path.write_text(json.dumps({"unit": "lesion", "ids": ids}))
    else:
        for image, part in PARTS.items():
            (path / part / "x").mkdir(parents=True, exist_ok=True)
            (path / part / "x" / f"{image}.jpg").touch()
    code, result = call(metadata, path, "--json", *words)
    found = json.loads(result.stdout)
    assert code == 1
    assert found["shared"]["lesion"]["groups"].keys() == {"L1"}, "C1, pooled, counts as its node's"
    assert sum(found["parts"].values()) == 8


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        ("image,part\nA1,train\nX9,test\nX8,test\n", [], "2 of 3 images are not in the metadata (X9, X8)"),
        ("image,part\nA1,train\nA1.jpg,test\n", [], "1 images are there twice (A1; the first in train and test)"),
        ("image,part\nA1,\n", [], "column 'part' is empty"),
        ("image,centre\nA1,b\n", [], "no column of parts; name it with --part-column"),
        ("name,part\nA1,b\n", [], "no column of images"),
        ("image,part\nX1,b\n", ["--ignore-unknown"], "1 of 1 images are not in the metadata"),
    ],
    ids=["unknown", "repeated", "empty", "no-part", "no-image", "none-known"],
)
def test_what_is_no_split_of_these_data_is_one_line(metadata, tmp_path, content, words, said):
    path = tmp_path / "split.csv"
    path.write_text(content)
    code, result = call(metadata, path, *words)
    assert code == 2
    assert said in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_images_that_are_not_known_can_be_left_out(metadata, tmp_path):
    path = as_csv(tmp_path / "split.csv", PARTS | {"X9": "test"})
    code, result = call(metadata, path, "--ignore-unknown", "--json")
    assert (code, json.loads(result.stdout)["parts"]["test"]) == (1, 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,dx\nA1,mel\n", "neither a column of lesions"),
        ("image_id,lesion_id\nA1,L\nA1,M\n", "image A1 has a row"),
    ],
    ids=["no-groups", "twice"],
)
def test_metadata_that_tell_nothing_are_one_line(tmp_path, text, said):
    path = tmp_path / "metadata.csv"
    path.write_text(text)
    code, result = call(path, as_csv(tmp_path / "split.csv", {"A1": "train"}))
    assert code == 2
    assert said in result.output


def picture(seed, size=96):
    """Blobs of colour, as a lesion has them."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))


def squared(image):
    return np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))


def again(image, quality):
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality)
    return Image.open(target)


def test_a_picture_that_was_saved_again_or_scaled_has_nearly_the_same_hash_and_others_have_not():
    one = picture(1)
    versions = [one, again(one, 40), one.resize((150, 110)), Image.eval(one, lambda value: value // 2 + 60)]
    hashes = perceptual_hash(np.stack([squared(image) for image in [*versions, *map(picture, range(2, 40))]]))
    apart = np.bitwise_count(hashes[0] ^ hashes).sum(axis=1)
    assert (apart[: len(versions)] <= THRESHOLD).all(), apart[: len(versions)]
    assert (apart[len(versions) :] > 3 * THRESHOLD).all(), "half of 256 bits differ by chance"


def test_the_bits_are_the_signs_of_the_low_frequencies():
    """The oracle: the cosine transform written out as two products with its matrix."""
    pixels = squared(picture(3))
    grey = pixels.astype(np.float64) @ [0.299, 0.587, 0.114]
    k, n = np.arange(16)[:, None], np.arange(32)[None, :]
    basis = np.cos(np.pi * k * (2 * n + 1) / 64)  # unscaled: scales of rows and columns are positive
    basis[0] /= np.sqrt(2)
    low = (basis @ grey @ basis.T).ravel()
    expected = low > np.median(low[1:])
    expected[0] = False
    found = np.unpackbits(perceptual_hash(pixels[None]).view(np.uint8)).astype(bool)
    assert (found == expected).sum() >= 255, "but for rounding at the median"


def test_only_pairs_of_different_parts_are_compared():
    hashes = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [3, 0, 0, 4], [2**64 - 1] * 4], dtype=np.uint64)
    parts = np.array([0, 0, 1, 1])
    assert list(close_pairs(hashes, parts, 2)) == [(2, 1, 2)]
    assert list(close_pairs(hashes, parts, 3)) == [(3, 0, 2), (2, 1, 2)]


def test_copies_and_look_alikes_across_parts_are_found(metadata, tmp_path):
    clean = PARTS | {"A3": "train", "B1": "train"}
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, image in enumerate(clean):
        picture(seed).save(folder / f"{image}.png")
    picture(0).save(folder / "E1.png")  # of val; A1 is of train
    again(picture(4), 50).save(folder / "D1.png")  # of test; C1 is of train
    (folder / "C2.png").write_bytes(b"no image")
    code, result = call(metadata, as_csv(tmp_path / "split.csv", clean), "--images", str(folder), "--json")
    found = json.loads(result.stdout)
    assert code == 1, "no lesion is shared, but pictures are"
    first, second = found["alike"]
    assert (set(first["images"]), set(first["parts"]), first["same"]) == ({"A1", "E1"}, {"train", "val"}, True)
    assert (set(second["images"]), set(second["parts"]), second["same"]) == ({"C1", "D1"}, {"train", "test"}, False)
    assert "C2 cannot be read" in found["notes"][1]
    assert call(metadata, tmp_path / "split.csv", "--images", str(tmp_path / "nowhere"))[0] == 2


def test_a_split_by_site_never_separates_a_lesion_and_does_not_depend_on_other_rows():
    rows = [Row(f"i{n}", f"L{n % 211}", f"site-{n % 211 % 3}", "nv") for n in range(500)]
    rows.append(Row("extra", "L4", "site-9", "nv"))  # two images of site-1 outvote it
    split = dict(site_split(rows, test=0.2))
    by_lesion = {}
    for row in rows:
        by_lesion.setdefault(row.group, set()).add(split[row.image])
    assert all(len(parts) == 1 for parts in by_lesion.values())
    assert split["extra"] == split["i4"]
    assert split["i4"].startswith("site-1-")
    tested = [group for group, parts in by_lesion.items() if next(iter(parts)).endswith("-test")]
    expected = [g for g in by_lesion if int(hashlib.sha256(g.encode()).hexdigest()[:16], 16) / 2**64 < 0.2]
    assert tested == expected
    assert dict(site_split(rows[:250], test=0.2)).items() <= split.items()


def test_lesions_that_are_one_stay_together(tmp_path):
    rows = [Row(f"i{n}", f"L{n}", "a", "nv") for n in range(60)]
    alone = dict(site_split(rows, test=0.5))
    apart = [row.image for row in rows if alone[row.image] != alone["i0"]]
    joined = dict(site_split(rows, test=0.5, together=[("i0", apart[0]), (apart[0], apart[1])]))
    assert joined["i0"] == joined[apart[0]] == joined[apart[1]]


def test_make_split_writes_what_audit_split_finds_clean(tmp_path):
    path, out = tmp_path / "m.csv", tmp_path / "split.csv"
    path.write_text(
        "image_id,lesion_id,dataset,dx\n" + "".join(f"i{n},L{n // 2},s{n // 2 % 2},nv\n" for n in range(40))
    )
    result = CliRunner().invoke(app, ["make-split", "--metadata", str(path), "--out", str(out), "--together", "i0=i9"])
    assert result.exit_code == 0, result.output
    assert hashlib.sha256(out.read_bytes()).hexdigest() in result.output
    assert call(path, out)[0] == 0
    result = CliRunner().invoke(app, ["make-split", "--metadata", str(path), "--out", str(out), "--together", "i0=x"])
    assert result.exit_code == 2
    assert "'x' is no image of the metadata" in result.output
