"""Find the file that a cell of a hospital's table means."""

from __future__ import annotations

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

from fedskew.data.samples import DataError
from fedskew.data.stores import Store

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# images all the same, but of formats whose decoders are never given hospital files (`decode`): they are counted
OTHER_SUFFIXES = (
    ".tif", ".tiff", ".bmp", ".gif", ".webp", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jfif", ".jpe", ".dcm",
)  # fmt: skip


def is_image(name: str) -> bool:
    """Whether a file is named like an image and is not the hidden half that macOS archives hold of each file."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not _is_hidden(name)


def is_other_image(name: str) -> bool:
    """Whether a file is named like an image of a format that is not read."""
    return name.lower().endswith(OTHER_SUFFIXES) and not _is_hidden(name)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def other_formats_note(names: Iterable[str]) -> list[str]:
    """How many images of other formats are among the files, and in which folders there is nothing else."""
    listed = list(names)
    others = [name for name in listed if is_other_image(name)]
    if not others:
        return []
    suffixes = Counter(name[name.rindex(".") :].lower() for name in others)
    folders = Counter(name.rpartition("/")[0] for name in others)
    read = {name.rpartition("/")[0] for name in listed if is_image(name)}
    alone = [f"{folder} ({count})" for folder, count in sorted(folders.items()) if folder and folder not in read]
    counts = ", ".join(f"{suffix} {count}" for suffix, count in sorted(suffixes.items()))
    nothing_else = f"; nothing else is in {', '.join(alone[:5])}{' …' if len(alone) > 5 else ''}" if alone else ""
    return [f"{len(others)} files of other image formats are not read ({counts}){nothing_else}; convert them to PNG"]


def folded(text: str) -> str:
    """Text for comparison: capitals do not count, nor how an accent is encoded (macOS writes it apart)."""
    return unicodedata.normalize("NFC", text).casefold()


class ImageFinder:
    """The images of a store by what a table calls them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, value: str, folder: str) -> str:
        """The key of an image in the store; empty if there is none.

        Args:
            value: a path relative to the table or to the data set, an absolute path, or a bare file name, with or
                without suffix, which is then looked for in all folders.
            folder: where the table lies in the store.

        Raises:
            DataError: several files could be meant; the first two are named.
        """
        text = value.replace("\\", "/")
        for key in dict.fromkeys((posixpath.normpath(posixpath.join(folder, text)), posixpath.normpath(text))):
            if self._store.entry(key) is not None:
                return key
        if "/" in text:
            return ""  # another folder's file of that name may be another image
        return self._bare(text)

    def _bare(self, text: str) -> str:
        found = self._by_name.get(folded(text), []) or self._by_stem.get(folded(text), [])
        exact = [name for name in found if text in (_base(name), _stem(name))]
        candidates = exact or found
        other = next((name for name in candidates[1:] if not self._store.is_same(candidates[0], name)), "")
        if other:
            raise DataError(
                f"image {text!r} may be {candidates[0]} or {other}; write the folder into the table, or remove "
                "the one that is not meant"
            )
        return candidates[0] if candidates else ""

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        return self._indexed(stem=False)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        return self._indexed(stem=True)

    def _indexed(self, *, stem: bool) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for name in filter(is_image, self._store.names()):
            index.setdefault(folded(_stem(name) if stem else _base(name)), []).append(name)
        return index


def other_format_of(store: Store, values: Iterable[str]) -> dict[str, str]:
    """For what a table calls images: the file of that name in a format that is not read, where there is one."""
    index = {folded(_stem(name)): name for name in reversed(store.names()) if is_other_image(name)}
    wanted = {value: folded(_base(value.replace("\\", "/"))) for value in values}
    found = {value: index.get(base) or index.get(base.rpartition(".")[0]) for value, base in wanted.items()}
    return {value: name for value, name in found.items() if name}


def _base(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return _base(name).rpartition(".")[0]
