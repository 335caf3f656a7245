"""Every layout and container that is promised, and every way in which a data set can be wrong."""

import io
import multiprocessing
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedskew.data.samples import DataError
from fedskew.data.sources import open_source

HEADER = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
ROWS = [
    "HAM_2,ISIC_3,mel,histo,60.0,male,back,rosendahl",
    "HAM_1,ISIC_1,nv,follow_up,45.0,female,lower extremity,vidir_modern",
    "HAM_1,ISIC_2,nv,follow_up,,unknown,unknown,vidir_modern",
]
TABLE = "\n".join([HEADER, *ROWS]) + "\n"
Files = Mapping[str, bytes]


def jpeg(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), value, np.uint8)).save(out, "JPEG")
    return out.getvalue()


PICTURES = {"part_1/ISIC_1.jpg": jpeg(10), "part_1/ISIC_2.JPG": jpeg(20), "part_2/ISIC_3.jpeg": jpeg(30)}
HAM = {"HAM10000_metadata.csv": TABLE.encode(), **PICTURES}


def folder(path: Path, files: Files) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zip_file(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tar_file(path: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def under(prefix: str, files: Files) -> dict[str, bytes]:
    return {prefix + name: content for name, content in files.items()}


CONTAINERS = {
    "folder": lambda t: folder(t / "d", HAM),
    "nested folder": lambda t: folder(t / "d", under("ham10000/", HAM)),
    "zip": lambda t: zip_file(t / "d.zip", under("ham10000/", HAM)),
    "tar": lambda t: tar_file(t / "d.tar", HAM),
    "tar with ./": lambda t: tar_file(t / "d.tar", under("./", HAM)),
    "tar.gz": lambda t: tar_file(t / "d.tar.gz", HAM, "w:gz"),
    "tgz": lambda t: tar_file(t / "d.tgz", under("ham10000/", HAM), "w:gz"),
    "archive without suffix": lambda t: zip_file(t / "download", HAM),
}


@pytest.fixture(params=CONTAINERS)
def container(request, tmp_path):
    return CONTAINERS[request.param](tmp_path)


def test_every_container_gives_the_same_samples_and_images(container):
    source = open_source(container)
    assert [s.image_id for s in source.samples] == ["ISIC_1", "ISIC_2", "ISIC_3"]
    first, second, third = source.samples
    assert (first.lesion_id, first.label, first.age, first.sex) == ("HAM_1", "nv", 45.0, "female")
    assert (first.localization, first.site) == ("lower extremity", "vidir_modern")
    assert (second.age, second.sex, second.localization) == (None, None, None)
    assert [source.read(s.image) for s in source.samples] == list(PICTURES.values())
    assert source.read(first.image) == PICTURES["part_1/ISIC_1.jpg"]  # a step back in the stream
    assert {k: v for k, v in source.read_all()} == {s.image: source.read(s.image) for s in source.samples}  # noqa: C416
    assert source.missing == ()
    assert "HAM10000" in source.description
    assert third.site == "rosendahl"


def _child_read(source, image, queue):
    queue.put(source.read(image))


def test_a_source_survives_pickling_and_a_fork(container):
    source = open_source(container)
    image = source.samples[0].image
    content = source.read(image)  # opens the handle that a child must not share
    copy = pickle.loads(pickle.dumps(source))
    assert copy.samples == source.samples
    assert copy.read(image) == content
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child_read, args=(source, image, queue))
    child.start()
    assert queue.get(timeout=20) == content
    child.join(20)
    assert source.read(source.samples[2].image) == PICTURES["part_2/ISIC_3.jpeg"]


@pytest.mark.parametrize("name", ["HAM10000_metadata", "HAM10000_metadata.csv", "HAM10000_metadata.txt"])
def test_table_names(tmp_path, name):
    assert len(open_source(folder(tmp_path / "d", {name: TABLE.encode(), **PICTURES})).samples) == 3


def test_dataverse_tab_with_quotes_and_byte_order_mark(tmp_path):
    lines = [line.split(",") for line in TABLE.splitlines()]
    quoted = "\r\n".join("\t".join(f'"{value}"' for value in line) for line in lines).encode("utf-8-sig")
    source = open_source(folder(tmp_path / "d", {"HAM10000_metadata.tab": quoted, **PICTURES}))
    assert source.samples[0].localization == "lower extremity"


def test_column_dataset_is_optional(tmp_path):
    table = "\n".join(line.rsplit(",", 1)[0] for line in TABLE.splitlines())
    source = open_source(folder(tmp_path / "d", HAM | {"HAM10000_metadata.csv": table.encode()}))
    assert {sample.site for sample in source.samples} == {None}


def test_a_copy_without_lesions_or_in_another_encoding_is_noted(tmp_path):
    assert open_source(folder(tmp_path / "d", HAM)).notes == ()
    table = "\n".join(line.split(",", 1)[1] for line in TABLE.splitlines()).replace("back", "Rücken")
    files = HAM | {"HAM10000_metadata.csv": table.encode("cp1252")}
    encoding, lesions = open_source(folder(tmp_path / "e", files)).notes
    assert encoding.startswith("HAM10000_metadata.csv is not UTF-8: read as cp1252")
    assert lesions.startswith("nothing is known of lesions or patients")


def test_a_row_without_lesion_is_its_own_lesion(tmp_path):
    table = TABLE.replace("HAM_1,ISIC_1", ",ISIC_1")
    source = open_source(folder(tmp_path / "d", HAM | {"HAM10000_metadata.csv": table.encode()}))
    assert source.samples[0].lesion_id == "ISIC_1"


def test_a_folder_of_archives_as_downloaded(tmp_path):
    path = folder(tmp_path / "d", {"HAM10000_metadata": TABLE.encode()})
    zip_file(path / "HAM10000_images_part_1.zip", {"ISIC_1.jpg": jpeg(10), "ISIC_2.jpg": jpeg(20)})
    zip_file(path / "HAM10000_images_part_2.zip", {"ISIC_3.jpg": jpeg(30)})
    source = open_source(path)
    assert [source.read(s.image) for s in source.samples] == [jpeg(10), jpeg(20), jpeg(30)]
    assert dict(source.read_all()).keys() == {s.image for s in source.samples}
    assert pickle.loads(pickle.dumps(source)).read("ISIC_3.jpg") == jpeg(30)


def test_archives_beside_a_complete_folder_are_not_opened(tmp_path):
    path = folder(tmp_path / "d", HAM | {"old.zip": b"this is no archive"})
    assert len(open_source(path).samples) == 3


def test_a_copy_that_holds_every_image_twice(tmp_path):
    path = folder(tmp_path / "d", HAM | {"copy/ISIC_1.jpg": PICTURES["part_1/ISIC_1.jpg"]})
    assert open_source(path).samples[0].image == "copy/ISIC_1.jpg"
    (path / "copy/ISIC_1.jpg").write_bytes(PICTURES["part_1/ISIC_1.jpg"] + b"x")
    with pytest.raises(DataError, match="both are named like image ISIC_1"):
        open_source(path)


def test_missing_images_are_listed(tmp_path):
    files = {name: content for name, content in HAM.items() if "ISIC_2" not in name}
    source = open_source(folder(tmp_path / "d", files))
    assert source.missing == ("ISIC_2",)
    assert source.samples[1].image == ""


def test_masks_and_hidden_files_are_no_images(tmp_path):
    extra = {"masks/ISIC_1_segmentation.png": b"x", "__MACOSX/._ISIC_1.jpg": b"x", ".hidden/ISIC_1.jpg": b"xx"}
    source = open_source(folder(tmp_path / "d", HAM | extra))
    assert source.samples[0].image == "part_1/ISIC_1.jpg"


# ISIC challenges


def test_isic_2018_with_lesion_groupings(tmp_path):
    truth = (
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\nISIC_1,0.0,1.0,0,0,0,0,0\nISIC_2,0,1,0,0,0,0,0\nISIC_3,0,0,0,1.0,0,0,0\n"
    )
    groups = "image,lesion_id,diagnosis_confirm_type\nISIC_1,HAM_1,x\nISIC_2,HAM_1,x\nISIC_3,HAM_2,x\n"
    files = {"ISIC2018_Task3_Training_GroundTruth.csv": truth, "ISIC2018_Task3_Training_LesionGroupings.csv": groups}
    source = open_source(folder(tmp_path / "d", {k: v.encode() for k, v in files.items()} | PICTURES))
    assert [(s.label, s.lesion_id) for s in source.samples] == [("nv", "HAM_1"), ("nv", "HAM_1"), ("akiec", "HAM_2")]
    assert "ISIC" in source.description


def test_isic_2019_with_metadata(tmp_path):
    truth = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\nISIC_1,0,0,0,0,0,0,0,1.0,0\nISIC_3,1,0,0,0,0,0,0,0,0\n"
    meta = "image,age_approx,anatom_site_general,lesion_id,sex\nISIC_1,55.0,anterior torso,BCN_1,female\nISIC_3,,,,\n"
    files = {"ISIC_2019_Training_GroundTruth.csv": truth, "ISIC_2019_Training_Metadata.csv": meta}
    first, third = open_source(folder(tmp_path / "d", {k: v.encode() for k, v in files.items()} | PICTURES)).samples
    assert (first.label, first.age, first.sex, first.localization) == ("scc", 55.0, "female", "anterior torso")
    assert (third.label, third.age, third.lesion_id) == ("mel", None, "ISIC_3")


@pytest.mark.parametrize(("row", "count"), [("0,0,0", 0), ("1,1,0", 2)])
def test_isic_rows_need_exactly_one_class(tmp_path, row, count):
    truth = f"image,MEL,NV,BCC\nISIC_1,{row}\n".encode()
    with pytest.raises(DataError, match=rf"line 2: {count} classes are 1"):
        open_source(folder(tmp_path / "d", {"X_GroundTruth.csv": truth, **PICTURES}))


def test_two_ground_truths_are_ambiguous(tmp_path):
    truth = b"image,MEL,NV\nISIC_1,1,0\n"
    files = {"ISIC_Training_GroundTruth.csv": truth, "ISIC_Test_GroundTruth.csv": truth}
    with pytest.raises(DataError, match="several ground truths"):
        open_source(folder(tmp_path / "d", files | PICTURES))


# The fingerprint


def test_the_fingerprint_is_stable_and_changes_with_content(tmp_path):
    path = folder(tmp_path / "d", HAM)
    before = open_source(path).fingerprint
    assert open_source(path).fingerprint == before
    (path / "part_1/ISIC_1.jpg").write_bytes(jpeg(99))
    changed_image = open_source(path).fingerprint
    (path / "HAM10000_metadata.csv").write_text(TABLE.replace("60.0", "65.0"))
    assert len({before, changed_image, open_source(path).fingerprint}) == 3


def test_the_fingerprint_of_a_zip_knows_contents_of_equal_size(tmp_path):
    changed = dict(HAM) | {"part_1/ISIC_1.jpg": bytes(reversed(HAM["part_1/ISIC_1.jpg"]))}
    prints = [open_source(zip_file(tmp_path / f"{n}.zip", f)).fingerprint for n, f in enumerate([HAM, HAM, changed])]
    assert prints[0] == prints[1] != prints[2]
