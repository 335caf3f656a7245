"""What a site is shown before it pins a new app; the same commit is the same bundle and the same wheel."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedskew.cli.main import app
from fedskew.ops import review as module
from fedskew.ops.bundle import BundleError, bundle_hash
from fedskew.ops.review import CONTENT, Bundle, read_bundle, review, to_lines

CHECKOUT = Path(__file__).resolve().parents[1]
PARTS = ("LICENSE", "README.md", "clientapp.py", "conf", "fedskew", "plugins", "pyproject.toml", "serverapp.py")


def copy_of(target, **changes):
    """A second checkout with some files changed: `name=lambda text: text`, with `__` for `/` and `_` for `.`."""
    target.mkdir()
    for part in PARTS:
        source = CHECKOUT / part
        ignore = shutil.ignore_patterns("__pycache__")
        (shutil.copytree(source, target / part, ignore=ignore) if source.is_dir() else shutil.copy(source, target))
    for name, change in changes.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change(path.read_text() if path.exists() else ""))
    return target


def built(tmp_path, name="offered", **changes):
    """An offered bundle as a file."""
    from flwr.cli.build import build_fab_from_disk  # noqa: PLC0415

    path = tmp_path / f"{name}.fab"
    path.write_bytes(build_fab_from_disk(copy_of(tmp_path / name, **changes)))
    return path


def packed(tmp_path, files):
    """A file that looks like a bundle and holds these; a list of pairs may name a file twice."""
    path = tmp_path / "odd.fab"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def listed(files):
    """Files with the list of their hashes that a bundle holds."""
    rows = (f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}" for name, text in files)
    return [*files, (CONTENT, "\n".join(rows))]


def test_the_same_commit_gives_the_same_bundle_wherever_and_whenever_it_is_built(tmp_path):
    first, second = copy_of(tmp_path / "first"), copy_of(tmp_path / "second")
    for path in sorted(second.rglob("*"), reverse=True):  # another order, another time, other permissions
        os.utime(path, (time.time() - 10**6,) * 2)
        path.chmod(0o700 if path.is_dir() else 0o600)
    (second / "fedskew" / "__pycache__").mkdir()
    (second / "fedskew" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    assert bundle_hash(first) == bundle_hash(second)
    (second / "fedskew" / "errors.py").write_text((second / "fedskew" / "errors.py").read_text() + "\n")
    assert bundle_hash(first) != bundle_hash(second)


def test_the_same_commit_gives_the_same_wheel(tmp_path):
    hashes = []
    for name, umask in (("first", 0o022), ("second", 0o077)):
        folder = copy_of(tmp_path / name)
        for path in folder.rglob("*"):
            path.chmod(0o777 & ~umask if path.is_dir() else 0o666 & ~umask)
            os.utime(path, (time.time() - umask * 1000,) * 2)
        code = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=folder, check=True, capture_output=True)
        (wheel,) = tmp_path.glob("*.whl")
        hashes.append(hashlib.sha256(wheel.read_bytes()).hexdigest())
        wheel.unlink()
    assert hashes[0] == hashes[1]


def test_the_same_app_is_said_to_be_the_same(tmp_path):
    found = CliRunner().invoke(app, ["review", str(built(tmp_path)), "--approved", str(copy_of(tmp_path / "ours"))])
    assert found.exit_code == 0
    assert found.stdout.splitlines()[-1] == "the same bundle, byte for byte"
    assert bundle_hash(tmp_path / "ours") in found.stdout


def test_what_changed_is_shown_file_by_file_setting_by_setting_line_by_line(tmp_path):
    offered = built(
        tmp_path,
        **{
            "fedskew/errors.py": lambda text: "import socket\n" + text,
            "fedskew/extra.py": lambda _: "from subprocess import run\n\nrun(['curl'])\n",
            "conf/demo.yaml": lambda text: text.replace("rounds: 12", "rounds: 99"),
            "pyproject.toml": lambda text: text.replace('"psutil>=6.0",', '"psutil>=6.0",\n  "evil>=1",').replace(
                'preset = "demo"', 'preset = "paper"'
            ),
        },
    )
    ours = copy_of(tmp_path / "ours", **{"fedskew/gone.py": lambda _: "x = 1\n"})
    found = CliRunner().invoke(app, ["review", str(offered), "--approved", str(ours)])
    assert found.exit_code == 1
    for line in (
        f"approved {bundle_hash(ours)}",
        f"offered  {hashlib.sha256(offered.read_bytes()).hexdigest()}",
        "1 files added, 1 removed, 3 changed",
        "  + fedskew/extra.py",
        "  - fedskew/gone.py",
        "  ~ conf/demo.yaml",
        "  conf/demo.yaml: federation.rounds: 12 → 99",
        "  pyproject.toml: tool.flwr.app.config.preset: 'demo' → 'paper'",
        "  fedskew/errors.py: socket",
        "  fedskew/extra.py: subprocess",
        "+import socket",
        "+run(['curl'])",
        "-x = 1",
        "--- approved/fedskew/errors.py",
    ):
        assert line in found.stdout.splitlines(), line
    assert "'evil>=1'" in found.stdout
    short = CliRunner().invoke(app, ["review", str(offered), "--approved", str(ours), "--no-diff"])
    assert "+import socket" not in short.stdout
    data = json.loads(CliRunner().invoke(app, ["review", str(offered), "--approved", str(ours), "--json"]).stdout)
    assert (data["same"], data["added"], data["removed"]) == (False, ["fedskew/extra.py"], ["fedskew/gone.py"])


def test_an_offered_app_does_not_steer_the_terminal_of_its_reviewer():
    approved = Bundle("a", {"x.py": b"a = 1\n"})
    hostile = "a = 1  # \x1b[2K\x1b[1A\u202e nothing to see\nimport os\n".encode()
    found = review(approved, Bundle("b", {"x.py": hostile, "\x1b]0;y.py": b"", "conf/a.yaml": b'k: "\\e[31m"\n'}))
    text = "\n".join(to_lines(found))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert "+a = 1  # \\x1b[2K\\x1b[1A\\u202e nothing to see" in text
    assert "x.py: os" in found.imports


def of(name, old, new):
    """What a review of two bundles of one file says."""
    return review(Bundle("0" * 64, {name: old.encode()}), Bundle("1" * 64, {name: new.encode()}))


def test_a_name_does_not_steer_the_terminal_wherever_it_stands():
    name, other = "a\x1b[2J.py", "b\u202e.yaml"
    old = Bundle("0" * 64, {name: b"x\n", "gone" + name: b"x\n", other: b"x: 1\n"})
    new = Bundle("1" * 64, {name: b"import socket\n", "new" + name: b"x\n", other: b"x: 2\n"})
    lines = to_lines(review(old, new))
    assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
    assert {"  ~ a\\x1b[2J.py", "  + newa\\x1b[2J.py", "  - gonea\\x1b[2J.py", "  ~ b\\u202e.yaml"} <= set(lines)


def test_only_what_is_imported_now_and_was_not_before_is_named():
    found = of("a.py", "import os\nfrom json import loads\n", "import os, socket\nfrom . import b\nx = 1\n")
    assert found.imports == ("a.py: .", "a.py: socket")


def test_other_bytes_of_the_same_files_are_not_the_same_bundle():
    """The hash is what is pinned: an archive may hold more than its files."""
    found = of("a.py", "x\n", "x\n")
    assert not found.same
    assert "0 files added, 0 removed, 0 changed" in to_lines(found)


def test_a_file_larger_than_any_bundle_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FAB_MAX_SIZE", 100)
    (tmp_path / "large.fab").write_bytes(b"x" * 101)
    with pytest.raises(BundleError, match="is larger than 100 bytes, the most that Flower takes as a bundle"):
        read_bundle(tmp_path / "large.fab")


@pytest.mark.parametrize("end", ["\f", "\v", "\x1c", "\x85", "\u2028", "\r"])
def test_code_does_not_hide_behind_what_only_looks_like_the_end_of_a_line(end):
    """Approved as a comment, offered as code: `str.splitlines` takes both for the same two lines."""
    found = of("a.py", f"# see{end}steal()\n", "# see\nsteal()\n")
    assert "+steal()" in found.diff
    assert "-steal()" not in found.diff
    assert "-" + repr(f"# see{end}steal()")[1:-1] in found.diff


def test_what_changed_at_the_end_of_a_long_setting_is_shown():
    """Only the first 300 characters of a list were compared: nothing was said of a dependency at its end."""
    long = ", ".join(f'"harmless-package-number-{i}"' for i in range(40))
    (line,) = of("pyproject.toml", f"dependencies = [{long}]", f'dependencies = [{long}, "evil"]').settings
    assert line.startswith("pyproject.toml: dependencies: …")
    assert "'evil']" in line
    assert "'evil'" not in line.split(" → ")[0]
    assert len(line) < 800
    (line,) = of("a.yaml", "x: 1", "x: 2").settings
    assert line == "a.yaml: x: 1 → 2"
    (line,) = of("a.yaml", "y: 1", "x: 1\ny: 1").settings
    assert line == "a.yaml: x: (none) → 1"
    (line,) = of("a.yaml", "x: 1", "x: [" + ", ".join(["0"] * 500) + "]").settings
    assert line.endswith("0,…")


@pytest.mark.parametrize(
    "text",
    [
        "a: &x\n  b: *x\n",
        "\n".join(["a0: &a0 {k: 1, l: 2}", *(f"a{i}: &a{i} {{k: *a{i - 1}, l: *a{i - 1}}}" for i in range(1, 60))]),
        "\n".join(["a0: &a0 [1, 2]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]),
    ],
    ids=["endless", "mappings", "lists"],
)
def test_a_preset_of_aliases_does_not_keep_its_reviewer_for_ever(text):
    (line,) = of("conf/a.yaml", "", text).settings[-1:]
    assert "conf/a.yaml: (whole file): (none) → cannot be read: it uses aliases" in line


def test_files_that_cannot_be_read_are_named_not_passed_over():
    approved = Bundle("a", {"x.py": b"a = 1\n", "c.yaml": b"a: 1\n", "d.bin": b"\xff"})
    found = review(approved, Bundle("b", {"x.py": b"def :", "c.yaml": b"[" * 3000, "d.bin": b"\xfe"}))
    assert found.imports == ("x.py: (cannot be parsed as Python)",)
    assert any("c.yaml: (whole file): (none) → 'cannot be read" in line or "cannot be read" in line
               for line in found.settings)  # fmt: skip
    assert "d.bin is no text in UTF-8 and differs" in found.diff


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("../evil.py", "x")], "'../evil.py', a path out of its folder"),
        ([("/etc/evil.py", "x")], "a path out of its folder"),
        ([("a\\..\\b.py", "x")], "a path out of its folder"),
        ([*listed([("a.py", "x")]), ("b.py", "y")], "'b.py' is not what the bundle's own list"),
        ([("a.py", "x"), (CONTENT, "a.py," + 64 * "0" + ",8")], "'a.py' is not what the bundle's own list"),
        ([("a.py", "x")], "'a.py' is not what the bundle's own list"),
    ],
)
def test_an_odd_bundle_is_refused(tmp_path, files, message):
    with pytest.raises(BundleError) as error:
        read_bundle(packed(tmp_path, files))
    assert message in str(error.value)


def test_a_bundle_with_a_name_twice_is_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = packed(tmp_path, [("a.py", "x"), ("a.py", "y")])
    with pytest.raises(BundleError, match="a name twice"):
        read_bundle(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", b"\0" * (module.MAX_BYTES + 1))
    (tmp_path / "bomb.fab").write_bytes(buffer.getvalue())
    monkeypatch.setattr(module, "_read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(BundleError, match=r"holds more than 5000 files or 64,000,000 bytes"):
        read_bundle(tmp_path / "bomb.fab")


def test_what_is_no_bundle_is_an_error_of_one_line(tmp_path):
    (tmp_path / "no.fab").write_bytes(b"no zip")
    found = CliRunner().invoke(app, ["review", str(tmp_path / "no.fab"), "--approved", str(CHECKOUT)])
    assert found.exit_code == 2
    assert "cannot be read as an app bundle: File is not a zip file" in found.stderr
    found = CliRunner().invoke(app, ["review", str(tmp_path / "absent.fab"), "--approved", str(CHECKOUT)])
    assert (found.exit_code, "No such file" in found.stderr) == (2, True)
