"""The locks: all that pyproject.toml asks for is pinned in them, with hashes, and the image installs just that."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ("requirements", "torch", "build")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def entries(name: str) -> dict[str, list[str]]:
    """Package → the lines of its entry."""
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"^(?=\S)", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE), flags=re.MULTILINE)
    return {block.split("==")[0]: block.splitlines() for block in blocks if block}


def version_of(lines: list[str]) -> str:
    return re.match(r"\S+==(\S+)", lines[0])[1]


@pytest.mark.parametrize("name", LOCKS)
def test_every_entry_is_one_version_with_hashes(name):
    for package, lines in entries(name).items():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)? \\", lines[0]), lines[0]
        assert len(lines) > 1, f"{package} has no hash"
        for line in lines[1:]:
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line), f"{package}: {line}"


@pytest.mark.parametrize(
    ("asked", "names"),
    [(PROJECT["project"]["dependencies"], LOCKS[:2]), ([*PROJECT["build-system"]["requires"], "editables"], LOCKS[2:])],
)
def test_what_pyproject_asks_for_is_pinned_and_fits(asked, names):
    pinned = {package: version_of(lines) for name in names for package, lines in entries(name).items()}
    for requirement in map(Requirement, asked):
        package = canonicalize_name(requirement.name)
        assert package in pinned, f"{package} is in no lock: make lock"
        assert Version(pinned[package]) in requirement.specifier, f"{requirement}, but {pinned[package]}: make lock"


def test_nothing_is_in_two_locks_with_two_versions():
    found: dict[str, set[str]] = {}
    for name in LOCKS:
        for package, lines in entries(name).items():
            found.setdefault(package, set()).add(version_of(lines))
    assert {package: versions for package, versions in found.items() if len(versions) > 1} == {}
    assert not entries("requirements").keys() & entries("torch").keys()
    assert "ray" not in found, "only simulations need it"


def test_what_the_pinned_packages_need_is_pinned_too():
    """By the metadata of those that are installed here in the pinned version."""
    pinned = {package: version_of(lines) for name in LOCKS[:2] for package, lines in entries(name).items()}
    checked = 0
    for package, version in pinned.items():
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        if found.version != version:
            continue
        extras = {"dp"} if package == "flwr" else {""}
        for requirement in map(Requirement, found.requires or []):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                continue
            needed = canonicalize_name(requirement.name)
            assert needed in pinned, f"{package} needs {needed}: make lock"
            assert requirement.specifier.contains(pinned[needed], prereleases=True), f"{package} needs {requirement}"
        checked += 1
    assert checked > 40


def test_the_image_installs_the_locks_and_nothing_else():
    installs = re.findall(r"pip install (.+?);", DOCKERFILE)
    assert len(installs) == 2
    assert all("--no-deps" in line and "--only-binary :all:" in line for line in installs)
    assert "--require-hashes --requirement /locks/requirements.txt" in installs[1]
    assert 'cuda) index="--require-hashes"' in DOCKERFILE
    torch = {package: version_of(lines) for package, lines in entries("torch").items()}
    for place in (DOCKERFILE, (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")):
        for name in ("torch", "torchvision"):
            assert re.search(rf"{name.upper()}_VERSION(=|\S*:-){re.escape(torch[name])}\b", place), name
    assert "!locks" in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def test_a_lock_is_split_and_its_requirements_are_those_of_sites():
    lock = runpy.run_path(str(ROOT / "scripts" / "lock.py"))
    text = "# head\na-b==1.0 ; x \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\nc==2\n"
    assert lock["split"](text) == ["a-b==1.0 ; x \\\n    --hash=sha256:1 \\\n    --hash=sha256:2\n", "c==2\n"]
    assert [lock["name_of"](entry) for entry in lock["split"](text)] == ["a-b", "c"]
    project = {"project": {"dependencies": ["flwr[dp,simulation]>=1.41", "numpy>=2"]}}
    assert lock["asked"](project) == ["flwr[dp]>=1.41", "numpy>=2", "torchvision"]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_can_install_what_is_locked(tmp_path):
    words = ["make", "--dry-run", "install", f"VENV={tmp_path}/venv", "LOCKED=1"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(r"scripts/install.py .* --locked$", shown, flags=re.MULTILINE)


def test_the_locked_torch_is_asked_for_by_version_or_by_hash(monkeypatch, tmp_path):
    script = runpy.run_path(str(ROOT / "scripts" / "install.py"))
    monkeypatch.chdir(ROOT)
    asked: list[tuple[str, ...]] = []
    names = {"pip": lambda _, *words: asked.append(words), "installed_torch": lambda _: "", "answers": lambda _: True,
             "subprocess": type("Fits", (), {"run": lambda *_, **__: type("Done", (), {"returncode": 0}),
                                             "DEVNULL": 0, "PIPE": 0})}  # fmt: skip
    script["install_torch"].__globals__.update(names)
    script["install_torch"](tmp_path, "cuda", "https://index", True)
    script["install_torch"](tmp_path, "cpu", "https://index", True)
    script["install_torch"](tmp_path, "cpu", "https://index", False)
    versions = [f"{name}=={version_of(entries('torch')[name])}" for name in ("torch", "torchvision")]
    assert asked == [
        ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", "locks/torch.txt"),
        ("--index-url", "https://index", *versions),
        ("--index-url", "https://index", "torch", "torchvision"),
    ]


@pytest.mark.skipif(
    not (Path(sys.executable).parent / "cyclonedx-py").exists(), reason="cyclonedx-bom is not installed"
)
def test_the_bill_of_materials_names_what_is_locked(tmp_path):
    words = [
        "make",
        "--old-file",
        "install",
        "sbom",
        f"BIN={Path(sys.executable).parent}",
        f"SBOM={tmp_path}/sbom.json",
    ]
    contents = []
    for _ in range(2):
        subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        contents.append((tmp_path / "sbom.json").read_text(encoding="utf-8"))
    assert contents[0] == contents[1], "the same locks give the same file"
    bill = json.loads(contents[0])
    assert bill["metadata"]["component"]["name"] == "fedskew"
    found = {part["name"]: part for part in bill["components"]}
    assert found.keys() == entries("requirements").keys() | entries("torch").keys()
    assert found["torch"]["version"] == version_of(entries("torch")["torch"])
    hashes = re.findall(r"sha256:([0-9a-f]{64})", "".join(entries("requirements")["flwr"]))
    assert all(digest in json.dumps(found["flwr"]) for digest in hashes)
