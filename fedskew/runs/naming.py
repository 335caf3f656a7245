"""How a run folder gets a name that nothing else has, and how it goes without a trace."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from uuid import uuid4


def numbered_names(name: str) -> Iterator[str]:
    """`name`, `name-2`, `name-3` …"""
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def name_is_taken(path: Path) -> str:
    """What to say where a name that a person chose is not free."""
    return f'{path} is there already; go on in it with resume="{path}", or set another run.name'


def scratch_for(path: Path) -> Path:
    """A hidden neighbour to make or take apart `path` in; no two calls give the same."""
    return path.with_name(f".{path.name}.{uuid4().hex}.tmp")


def rename_to_free(scratch: Path, path: Path, *, numbered: bool) -> Path | None:
    """Give a finished folder its name, which nothing else may have; None if that is taken and not to be numbered."""
    for candidate in numbered_names(path.name) if numbered else (path.name,):
        target = path.with_name(candidate)
        if not target.exists():
            try:
                scratch.rename(target)
                return target
            except OSError as error:  # somebody else was faster
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
    return None


def remove_folder(folder: Path, made: tuple[Path, ...]) -> None:
    """Remove a folder, and those of its parents that were made for it and hold nothing else.

    It loses its name first: what a process that dies meanwhile leaves behind is never taken for a run folder, in which
    a supervisor would go on, or find no configuration.
    """
    scratch = scratch_for(folder)
    with suppress(OSError):  # it is not there, or cannot be renamed: then it cannot be removed either
        folder.rename(scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    for parent in made:
        with suppress(OSError):  # another run has come to lie there
            parent.rmdir()
