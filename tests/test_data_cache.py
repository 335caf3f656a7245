"""The cache: right pixels, named failures, built once, never trusted when damaged."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedskew.data import cache, decode
from fedskew.data.cache import build_cache
from fedskew.data.samples import DataError
from fedskew.data.sources import open_source
from fedskew.demo.generator import generate


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("data") / "set", images=24, seed=1, size=(48, 36))


@pytest.fixture
def data(pristine, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(pristine, tmp_path / "set"))


def build(data, directory, **changes):
    return build_cache(open_source(data), **({"size": 16, "fit": "squash", "directory": directory} | changes))


def test_rows_follow_the_samples(pristine, tmp_path):
    source, cached = open_source(pristine), build(pristine, tmp_path)
    assert cached.images.shape == (24, 16, 16, 3)
    assert cached.images.dtype == np.uint8
    assert cached.readable.all()
    assert cached.unreadable == ()
    for row in (0, 11, 23):
        assert np.array_equal(cached.images[row], decode.decode(source.read(source.samples[row].image), 16, "squash"))


def test_contents_are_hashes_of_the_pixels(data, tmp_path):
    source = open_source(data)
    again = Image.open(data / source.samples[5].image)
    again.load()
    for row, name in ((2, "copy"), (5, "again")):  # the one byte by byte, the other without loss in another format
        path = data / source.samples[row].image
        path.unlink()
        if name == "copy":
            path.write_bytes((data / source.samples[9].image).read_bytes())
        else:
            again.save(path, "PNG")
    (data / source.samples[7].image).write_bytes(b"spoilt")
    cached = build(data, tmp_path / "cache", size=36)
    expected = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in cached.images]
    expected[7] = bytes(16)
    assert [row.tobytes() for row in cached.contents] == expected
    assert cached.contents[2].tolist() == cached.contents[9].tolist()
    assert len(set(expected)) == 23
    with pytest.raises(ValueError, match="read-only"):
        cached.contents[0] = 0


def test_a_cache_of_a_version_without_contents_is_built_anew_in_its_place(pristine, tmp_path):
    old = build(pristine, tmp_path)
    content = json.loads((old.path / "index.json").read_text())
    del content["index"]["contents"]
    content["hash"] = cache._hash(content["index"])
    (old.path / "index.json").write_text(json.dumps(content))
    (old.path / "contents.u8").unlink()
    again = build(pristine, tmp_path)
    assert again.path == old.path
    assert again.contents.any(1).all()


def test_the_arrays_are_read_only(pristine, tmp_path):
    cached = build(pristine, tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        cached.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        cached.readable[0] = False


def test_size_fit_and_source_have_caches_of_their_own(pristine, data, tmp_path):
    os.utime(data / open_source(data).samples[0].image)
    variants = [build(pristine, tmp_path), build(pristine, tmp_path, size=8), build(pristine, tmp_path, fit="crop"),
                build(data, tmp_path)]  # fmt: skip
    assert len({cached.path for cached in variants}) == 4
    assert not np.array_equal(variants[0].images, variants[2].images)


def test_workers_do_not_change_the_bytes(pristine, tmp_path):
    one, four = (build(pristine, tmp_path / str(n), workers=n) for n in (1, 4))
    assert np.array_equal(one.images, four.images)


def test_a_second_call_reads_only(pristine, tmp_path, monkeypatch):
    first = build(pristine, tmp_path)
    monkeypatch.setattr(cache, "_build", lambda *_: pytest.fail("built again"))
    assert np.array_equal(build(pristine, tmp_path).images, first.images)


def test_unreadable_images_are_skipped_and_named(data, tmp_path):
    source = open_source(data)
    names = [data / source.samples[row].image for row in range(4)]
    names[0].write_bytes(names[0].read_bytes()[:300])
    names[1].write_bytes(b"not an image")
    names[2].write_bytes(b"")
    names[3].unlink()
    for _ in range(2):  # built, then read back
        cached = build(data, tmp_path / "cache")
        reasons = dict(cached.unreadable)
        assert list(reasons) == [sample.image_id for sample in source.samples[:4]]
        assert reasons[source.samples[3].image_id] == "file not found"
        assert "truncated" in reasons[source.samples[0].image_id].lower()
        assert cached.readable.tolist() == [False] * 4 + [True] * 20
        assert not cached.images[:4].any()


def test_no_readable_image_at_all(data, tmp_path):
    for sample in open_source(data).samples:
        (data / sample.image).write_bytes(b"spoilt")
    with pytest.raises(DataError, match="not one of 24 images can be read"):
        build(data, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


# Damage


@pytest.mark.parametrize(
    "damage", ["short", "zeros", "index", "no index", "no images", "edited", "folder only", "contents", "no contents"]
)
def test_a_damaged_cache_is_built_anew(pristine, tmp_path, damage):
    good = build(pristine, tmp_path)
    expected, path, contents = np.array(good.images), good.path, np.array(good.contents)
    images, index = path / "images.u8", path / "index.json"
    if damage == "short":
        images.write_bytes(images.read_bytes()[:-100])
    elif damage == "zeros":
        images.write_bytes(bytes(images.stat().st_size))
    elif damage == "index":
        index.write_text(index.read_text()[:50])
    elif damage == "contents":
        (path / "contents.u8").write_bytes(bytes(24 * 16))
    elif damage == "no contents":
        (path / "contents.u8").unlink()
    elif damage == "edited":
        content = json.loads(index.read_text())
        content["index"]["unreadable"] = [[0, "made up"]]
        index.write_text(json.dumps(content))
    if damage in ("no index", "folder only"):
        index.unlink()
    if damage in ("no images", "folder only"):
        images.unlink()
    again = build(pristine, tmp_path)
    assert np.array_equal(again.images, expected)
    assert np.array_equal(again.contents, contents)
    assert again.readable.all()


BUILD = """
import os, signal, sys
from pathlib import Path
from fedskew.data import cache
from fedskew.data.sources import open_source
data, directory, log, mode = sys.argv[1:]
original, decoded = cache._build, cache._decoded
def logged(*arguments):
    with open(log, "a") as out:
        out.write("built\\n")
    return original(*arguments)
def dying(*arguments):
    for number, item in enumerate(decoded(*arguments)):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
cache._build = logged
if mode == "die":
    cache._decoded = dying
print("ready", flush=True)
sys.stdin.readline()
cached = cache.build_cache(open_source(data), size=16, fit="squash", directory=Path(directory))
print(int(cached.images.sum()), flush=True)
"""


def start(data, directory, log, mode):
    root = Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    command = [sys.executable, "-c", BUILD, str(data), str(directory), str(log), mode]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def test_three_processes_build_one_cache_once(pristine, tmp_path):
    log = tmp_path / "log"
    children = [start(pristine, tmp_path / "cache", log, "live") for _ in range(3)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all are up: let them go at once
        child.stdin.write("\n")
        child.stdin.flush()
    sums = [child.communicate(timeout=60)[0].strip() for child in children]
    assert len(set(sums)) == 1
    assert int(sums[0]) == int(build(pristine, tmp_path / "cache").images.sum())
    assert log.read_text() == "built\n"


def test_a_process_killed_while_it_builds_leaves_nothing_harmful(pristine, tmp_path):
    child = start(pristine, tmp_path / "cache", tmp_path / "log", "die")
    child.communicate("\n", timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert list((tmp_path / "cache").glob("*.tmp-*"))
    cached = build(pristine, tmp_path / "cache")
    assert cached.readable.all()
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


def test_who_waits_for_a_build_reads_its_result(pristine, tmp_path, monkeypatch):
    calls, original = [], cache._build

    def slow(*arguments):
        calls.append(1)
        time.sleep(0.3)
        return original(*arguments)

    monkeypatch.setattr(cache, "_build", slow)
    threads = [threading.Thread(target=build, args=(pristine, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1]


# Directories that cannot be used


def test_a_directory_that_cannot_be_written_is_named(pristine, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"/file/cache cannot be written .*data\.cache-dir"):
        build(pristine, tmp_path / "file/cache")


def test_a_full_disk_is_named(pristine, tmp_path, monkeypatch):
    class Full:
        free = 10

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(DataError, match=r"0 MiB are free.*data\.cache-dir"):
        build(pristine, tmp_path)


def test_a_disk_that_fills_up_leaves_no_debris(pristine, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write_index", full)
    with pytest.raises(DataError, match=r"No space left.*data\.cache-dir"):
        build(pristine, tmp_path)
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("change", [{"size": 0}, {"workers": 0}, {"fit": "stretch"}])
def test_impossible_settings(pristine, tmp_path, change):
    with pytest.raises(DataError, match="expected size >= 1"):
        build(pristine, tmp_path, **change)
