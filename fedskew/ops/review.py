"""What changed between the app that a site has approved and the one that it is offered: for whoever pins the hash.

    fedskew review offered.fab --approved /opt/fedskew

A bundle is read in memory and never unpacked, imported or run. What it holds is a stranger's text: nothing of it
reaches the terminal as it is.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import io
import os
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from fedskew.flower import FAB_MAX_SIZE, build_fab_from_disk
from fedskew.ops.bundle import BundleError
from fedskew.text import UniqueKeys, printable, read_yaml

MAX_BYTES, MAX_FILES = 64_000_000, 5000  # of all files of a bundle together, as they would lie on a disk
PROJECT, CONTENT = "pyproject.toml", ".info/CONTENT"
PRESETS = (".yaml", ".yml")
SHOWN = 300  # characters of a setting's value


@dataclass(frozen=True)
class Bundle:
    """An app bundle: its hash, which is what a policy pins, and its files."""

    sha256: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Review:
    """What differs from the approved bundle to the offered one.

    Attributes:
        settings: `file: key: old → new` of pyproject.toml (dependencies, components, declared keys) and of the presets.
        imports: `file: module` of every module that a Python file imports now and did not before.
        diff: unified, of all text files; a file that is no text has one line.
    """

    approved: str
    offered: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    settings: tuple[str, ...]
    imports: tuple[str, ...]
    diff: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether both are one and the same bundle, byte for byte."""
        return self.approved == self.offered


class _WithoutAliases(UniqueKeys):
    """YAML that is as large as its text: aliases of aliases stand for more than any memory holds, or for no end."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See `yaml.composer.Composer`."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases, which no preset needs")
        return super().compose_node(parent, index)


def read_bundle(path: Path) -> Bundle:
    """Read a `.fab` file, or build the bundle of an app folder.

    Raises:
        BundleError: it is neither, too large, or its files are not what its own list says.
    """
    try:
        content = build_fab_from_disk(path) if path.is_dir() else _bounded(path)
        files = _files(content, str(path))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} cannot be read as an app bundle: {error}") from error
    return Bundle(hashlib.sha256(content).hexdigest(), files)


def review(approved: Bundle, offered: Bundle) -> Review:
    """Compare two bundles; everything in the result is fit for a terminal."""
    old, new = approved.files, offered.files
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name] and name != CONTENT)
    names = sorted((old.keys() ^ new.keys()) | set(changed))
    return Review(
        approved.sha256,
        offered.sha256,
        tuple(map(printable, sorted(new.keys() - old.keys()))),
        tuple(map(printable, sorted(old.keys() - new.keys()))),
        tuple(map(printable, changed)),
        tuple(line for name in names for line in _settings(name, old.get(name), new.get(name))),
        tuple(line for name in names for line in _imports(name, old.get(name), new.get(name))),
        tuple(line for name in names for line in _diff(name, old.get(name), new.get(name))),
    )


def to_lines(found: Review, *, diff: bool = True) -> list[str]:
    """A review for a person."""
    lines = [f"approved {found.approved}", f"offered  {found.offered}"]
    if found.same:
        return [*lines, "the same bundle, byte for byte"]
    counts = f"{len(found.added)} files added, {len(found.removed)} removed, {len(found.changed)} changed"
    marked = [(mark, name) for mark, names in (("+", found.added), ("-", found.removed), ("~", found.changed))
              for name in names]  # fmt: skip
    lines += ["", counts, *(f"  {mark} {name}" for mark, name in marked)]
    for title, rows in (("settings", found.settings), ("modules that are imported now", found.imports)):
        lines += ["", f"{title}: {'as they were' if not rows else ''}".rstrip(), *(f"  {row}" for row in rows)]
    return [*lines, "", *found.diff] if diff else lines


def to_data(found: Review) -> dict[str, Any]:
    """A review as JSON."""
    return {"same": found.same, **asdict(found)}


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FAB_MAX_SIZE + 1)
    if len(content) > FAB_MAX_SIZE:
        raise BundleError(f"{path} is larger than {FAB_MAX_SIZE:,} bytes, the most that Flower takes as a bundle")
    return content


def _files(content: bytes, where: str) -> dict[str, bytes]:
    """The files of a bundle by name, held against its list of hashes."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        if len(names) > MAX_FILES or sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise BundleError(f"{where} holds more than {MAX_FILES} files or {MAX_BYTES:,} bytes: do not use it")
        odd = [name for name in names if not _is_plain(name)]
        if odd or len(set(names)) != len(names):
            twice = next(iter(odd or [name for name in names if names.count(name) > 1]))
            raise BundleError(f"{where} holds {twice!r:.80}, a path out of its folder or a name twice: do not use it")
        files = {entry.filename: _read(archive, entry) for entry in entries}
    _check_list(files, where)
    return files


def _is_plain(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and name == str(path)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise BundleError(f"{entry.filename!r:.80} unpacks to another size than it says: do not use this bundle")
    return content


def _check_list(files: Mapping[str, bytes], where: str) -> None:
    listed = dict(line.rsplit(",", 2)[:2] for line in files.get(CONTENT, b"").decode().splitlines())
    found = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != CONTENT}
    if listed != found:
        name = next(iter(sorted(listed.items() ^ found.items())), ("",))[0]
        raise BundleError(f"{where}: {name!r:.80} is not what the bundle's own list {CONTENT} says: do not use it")


def _settings(name: str, old: bytes | None, new: bytes | None) -> Iterator[str]:
    if name != PROJECT and not name.endswith(PRESETS):
        return
    before, after = _flat(name, old), _flat(name, new)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            yield printable(f"{name}: {key}: {_apart(before.get(key, '(none)'), after.get(key, '(none)'))}")


def _apart(old: str, new: str) -> str:
    """`old → new`; of values too long to be shown the part that begins shortly before they differ."""
    too_long = max(len(old), len(new)) > SHOWN
    same = len(os.path.commonprefix([old, new]))  # noqa: RUF071  # letter by letter is what is wanted
    start = max(0, same - SHOWN // 4) if too_long else 0
    cut = [text[start : start + SHOWN] + "…" * (len(text) > start + SHOWN) for text in (old, new)]
    return " → ".join("…" * (start > 0) + text for text in cut)


def _flat(name: str, content: bytes | None) -> dict[str, str]:
    """Every value of a TOML or YAML file by its path of keys."""
    if content is None:
        return {}
    try:
        text = content.decode()
        tree = tomllib.loads(text) if name == PROJECT else read_yaml(text, _WithoutAliases)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return {"(whole file)": f"cannot be read: {str(error)[:100]}"}
    found: dict[str, str] = {}
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, Mapping) and value:
            waiting += [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
        else:
            found[path] = repr(value)
    return found


def _imports(name: str, old: bytes | None, new: bytes | None) -> Iterator[str]:
    if name.endswith(".py") and new is not None:
        yield from (printable(f"{name}: {module}") for module in sorted(_modules(new) - _modules(old or b"")))


def _modules(content: bytes) -> set[str]:
    """Modules that a Python file imports, wherever it does."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {"(cannot be parsed as Python)"}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


def _diff(name: str, old: bytes | None, new: bytes | None) -> Iterator[str]:
    if name == CONTENT:
        return
    try:
        # not `splitlines`: for it a form feed ends a line, so that code in a comment and code after one look the same
        before, after = ([] if content is None else content.decode().split("\n") for content in (old, new))
    except UnicodeDecodeError:
        yield printable(f"{name} is no text in UTF-8 and differs")
        return
    heads = (f"approved/{name}" if old is not None else "(none)", f"offered/{name}" if new is not None else "(none)")
    yield from (printable(line.expandtabs()) for line in difflib.unified_diff(before, after, *heads, lineterm=""))
