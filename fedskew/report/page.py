"""A run as one HTML file: everything in it, nothing fetched, no script.

    write_report(Path("runs/pruned"))   # runs/pruned/report.html

The templates are Jinja2's. Their names end in `.md` because Flower's bundle, with which they travel to the coordinator,
carries no `.html`, whatever `fab-include` says (`flwr.common.constant.FAB_INCLUDE_PATTERNS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2

from fedskew import __version__
from fedskew.files import write_bytes
from fedskew.report.content import read_content
from fedskew.report.drawing import page_style
from fedskew.report.numbers import dash, percent, three
from fedskew.report.run_view import run_view
from fedskew.runs.reading import REPORT, RunFolderError

TEMPLATES = Path(__file__).with_name("templates")


def write_report(run: Path, out: Path | None = None, *, best: bool = False) -> Path:
    """Write the report of a run.

    Args:
        out: the file; None: `report.html` in the run folder.
        best: show the best round's model instead of the last that was evaluated.

    Returns:
        The file.

    Raises:
        RunFolderError: no run, nothing finished in it, a damaged file, or the report cannot be written.
        ConfigError, PredictionsError: those files are damaged.
    """
    content = read_content(run, best=best)
    with page_style():
        view = run_view(content)
    return write_page("run.html.md", view, out or run / REPORT)


def write_page(template: str, view: Mapping[str, Any], out: Path) -> Path:
    """Fill a template and write it, whole or not at all. Raises `RunFolderError` where it cannot be written."""
    text = _environment().get_template(template).render(view, version=__version__)
    try:
        write_bytes(out, text.encode())
    except OSError as error:
        raise RunFolderError(
            f"{out} cannot be written: {error.strerror or error}; name another file with --out"
        ) from error
    return out


def _environment() -> jinja2.Environment:
    """Everything that is filled in is escaped: names of classes and sites are other people's text."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    found = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    filters: dict[str, Callable[..., str]] = {"three": three, "dash": dash, "percent": percent}
    found.filters |= filters
    return found
