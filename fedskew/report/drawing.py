"""Figures as SVG inside a page: text stays text, and colours are those of the page, light or dark.

matplotlib knows no CSS: it draws with colours that nothing else has, and each becomes a variable of the page's style. A
figure is as wide as a phone has room for, and is never scaled down.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

WIDTH = 343  # of a figure: a phone's 375 less its margins
TEXT = 11  # pixels of a letter's height
POINTS = 72  # units of an SVG's viewBox to an inch of matplotlib's
# what the page's style calls its colours
NAMES = (
    "ink", "muted", "line", "paper", "model", "dense", "good", "warn", "bad", "odd", "on-model",
    *(f"run-{i}" for i in range(8)),
)  # fmt: skip
COLOURS = {name: f"#0101{i + 1:02x}" for i, name in enumerate(NAMES)}
SVG = "http://www.w3.org/2000/svg"
XLINK = "http://www.w3.org/1999/xlink"
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "fedskew", "text.parse_math": False, "path.simplify": True,
    "font.family": "sans-serif", "font.size": TEXT, "axes.titlesize": TEXT, "axes.labelsize": TEXT,
    "legend.fontsize": TEXT, "xtick.labelsize": TEXT, "ytick.labelsize": TEXT, "axes.spines.top": False,
    "axes.spines.right": False, "xtick.major.size": 0, "ytick.major.size": 0, "axes.axisbelow": True,
    "axes.linewidth": 1, "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["muted"],
    "xtick.color": COLOURS["line"], "ytick.color": COLOURS["line"], "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"], "axes.edgecolor": COLOURS["line"], "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6, "legend.frameon": False, "hatch.linewidth": 0.6,
}  # fmt: skip


@contextmanager
def page_style() -> Iterator[None]:
    """matplotlib's settings while figures of a page are drawn; those of the process are as before afterwards."""
    with matplotlib.rc_context(SETTINGS):
        yield


def canvas(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many CSS pixels."""
    figure = Figure(figsize=(width / POINTS, height / POINTS), dpi=POINTS)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    return figure


def plot_area(figure: Figure, left: float, top: float, right: float, bottom: float) -> Axes:
    """Axes with so many pixels around them, a faint grid of heights, and whole rounds on the x axis."""
    width, height = figure.get_size_inches() * POINTS
    place = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    axes = figure.add_axes(place)
    axes.patch.set_visible(False)
    axes.grid(axis="y")
    return axes


def drawing_area(figure: Figure) -> Axes:
    """Axes over the whole figure whose units are pixels, from the upper left."""
    width, height = figure.get_size_inches() * POINTS
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def boxes(
    axes: Axes, places: Iterable[tuple[float, float, float, float]], colour: str, alpha: float = 1.0, **more: object
) -> None:
    """Rectangles (left, bottom, width, height) of one colour as one path: a page may have thousands of them."""
    corners = [
        ((x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)) for x, y, width, height in places
    ]
    if corners:
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(corners)
        path = Path(np.array(corners).reshape(-1, 2), codes)
        given = {"facecolor": COLOURS[colour], "edgecolor": "none", "alpha": alpha} | more
        axes.add_patch(PathPatch(path, **given))


def frames(axes: Axes, places: Sequence[tuple[float, float, float, float]], colour: str) -> None:
    """The outlines of rectangles."""
    boxes(axes, places, colour, facecolor="none", edgecolor=COLOURS[colour], linewidth=0.8)


def text_width(text: str) -> float:
    """About how many pixels a text is wide."""
    return 0.58 * TEXT * len(text)


def round_ticks(axes: Axes, first: float, last: float) -> None:
    """Whole numbers of rounds, as many as have room, with a little air on both sides."""
    air = max(0.5, (last - first) * 0.02)
    axes.set_xlim(first - air, last + air)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("round")


def to_svg(figure: Figure, name: str, title: str) -> Markup:
    """The figure as an element of the page.

    Args:
        name: of the figure in the page; ids begin with it.
        title: what a screen reader says.
    """
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Markup(_cleaned(target.getvalue(), name, title))  # matplotlib has escaped every text


def _cleaned(text: str, name: str, title: str) -> str:
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text)
    width = root.attrib["viewBox"].split()[2]
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"role": "img", "aria-label": title, "style": f"max-width:{float(width) * 1.3:.0f}px",
                    "data-figure": name}  # fmt: skip
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag == f"{{{SVG}}}style" or one.tag == f"{{{SVG}}}metadata"]:
            parent.remove(child)  # its rule would hold for the whole page
    named = set(re.findall(r"(?:href=\"|url\()#([^\")]+)", text))
    for element in root.iter():
        _clean_attributes(element, name, named)
        if not element.tag.endswith("}tspan") and not element.tag.endswith("}text"):
            element.text = None
        element.tail = None
    return ElementTree.tostring(root, encoding="unicode")


def _clean_attributes(element: ElementTree.Element, name: str, named: set[str]) -> None:
    """Ids of its own for each figure, colours as variables, the page's font, two digits of a pixel."""
    attributes = element.attrib
    if "id" in attributes:
        old = attributes.pop("id")
        if old in named:
            attributes["id"] = f"{name}-{old}"
    for key in (f"{{{XLINK}}}href", "clip-path", "style"):
        if key in attributes:
            attributes[key] = re.sub(r"#(?=[a-zA-Z])(?![0-9a-f]{6}\b)", f"#{name}-", attributes[key])
    if "style" in attributes:
        style = re.sub(r"font-family: [^;]*;? ?", "", attributes["style"])
        attributes["style"] = re.sub(r"#0101[0-9a-f]{2}", _variable, style)
    for key in ("d", "transform", "x", "y", "width", "height", "points"):
        if key in attributes:
            short = re.sub(r"(\d+\.\d{2})\d+", r"\1", attributes[key])
            attributes[key] = re.sub(r"\s+", " ", short).strip()
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]


def _variable(found: re.Match[str]) -> str:
    return f"var(--{NAMES[int(found[0][5:], 16) - 1]})"
