"""Make docs/results.md: the prose of template.md, the figures of the records beside it.

    python docs/results/build.py            # or: make results
    python docs/results/build.py --check    # exit code 1 if the page is not what the template and the records give

What stands in {{…}} in the template is replaced. STUDY is a folder of records here, `.` this one; CELL is STUDY/NAME:

    {{table STUDY… --metrics a,b --cells x,y --titles "of x|of y" --seeds 0,1 --reference x
                   --by-cell --each --over-seeds}}
    {{value CELL METRIC [mean|sd|min|max|each|s0] [FORMAT]}}
    {{difference CELL METRIC REFERENCE [all|mean|low|high|s0] [--over-seeds]}}     in points
    {{setting CELL section.key}}            as the first of the cell's runs was configured
    {{json FILE key.0.key [FORMAT]}}        any other committed JSON or JSON-lines record

Metrics are those of `fedskew table`; FORMAT is Python's, `.3f`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NoReturn

import yaml

from fedskew.runs.folder import CONFIG
from fedskew.sweeps.results import Cell, ResultsError, read_cells, read_record, selected
from fedskew.sweeps.table import cell_table, is_score
from fedskew.sweeps.table_text import Layout, as_markdown, gap_text, number, points

HERE = Path(__file__).resolve().parent
TEMPLATE, PAGE = HERE / "template.md", HERE.parent / "results.md"
NOTICE = "<!-- Made by `make results` from results/template.md and the records beside it: change those. -->\n"
DIRECTIVE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


class PageError(ValueError):
    """A directive that cannot be followed; the message names its line."""


def page(template: str, records: Path) -> str:
    """The page that a template gives.

    Raises:
        PageError: with every directive that cannot be followed.
    """
    problems: list[str] = []

    def replacement(found: re.Match[str]) -> str:
        try:
            return follow(found[1], records)
        except (PageError, ResultsError, ValueError, RuntimeError) as error:
            line = template[: found.start()].count("\n") + 1
            problems.append(f"line {line}: {{{{{found[1].strip()}}}}}: {error}")
            return ""

    text = DIRECTIVE.sub(replacement, template)
    if problems:
        raise PageError("\n".join(problems))
    return NOTICE + text


def follow(directive: str, records: Path) -> str:
    """What takes the place of a directive, given without its braces."""
    name, *words = shlex.split(directive) or [""]
    commands: dict[str, Callable[[Sequence[str], Path], str]] = {
        "table": _table, "value": _value, "difference": _difference, "setting": _setting, "json": _json,
    }  # fmt: skip
    if name not in commands:
        raise PageError(f"unknown directive {name!r}; there are {', '.join(commands)}")
    return commands[name](words, records)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise PageError(message)


def _table(words: Sequence[str], records: Path) -> str:
    parser = _Parser(prog="table", add_help=False)
    parser.add_argument("studies", nargs="+")
    for option in ("--metrics", "--cells", "--titles", "--seeds", "--reference"):
        parser.add_argument(option, default="")
    for option in ("--by-cell", "--each", "--over-seeds"):
        parser.add_argument(option, action="store_true")
    given = parser.parse_args(words)
    cells = selected(_cells(records, *given.studies), _list(given.cells), [int(seed) for seed in _list(given.seeds)])
    titles = given.titles.split("|") if given.titles else [cell.name for cell in cells]
    if len(titles) != len(cells):
        raise PageError(f"{len(titles)} titles for {len(cells)} cells")
    titled = {cell.name: replace(cell, name=title) for cell, title in zip(cells, titles, strict=True)}
    cells = list(titled.values())
    reference = titled[given.reference].name if given.reference in titled else given.reference
    table = cell_table(cells, _list(given.metrics), reference=reference, over_seeds=given.over_seeds)
    return as_markdown(table, Layout(given.by_cell, given.each))


def _value(words: Sequence[str], records: Path) -> str:
    parser = _Parser(prog="value", add_help=False)
    for argument in ("cell", "metric"):
        parser.add_argument(argument)
    parser.add_argument("statistic", nargs="?", default="mean")
    parser.add_argument("format", nargs="?", default="")
    given = parser.parse_args(words)
    cell = _cell(records, given.cell)
    values = _defined(cell.values(given.metric), cell, given.metric)

    def text(value: float) -> str:
        return format(value, given.format) if given.format else number(given.metric, value)

    if given.statistic == "each":
        return ", ".join(text(value) for value in values)
    statistics: dict[str, Callable[[], float]] = {
        "mean": lambda: fmean(values), "sd": lambda: stdev(values), "min": lambda: min(values),
        "max": lambda: max(values), **{f"s{seed}": lambda i=i: values[i] for i, seed in enumerate(sorted(cell.runs))},
    }  # fmt: skip
    if given.statistic not in statistics:
        raise PageError(f"unknown statistic {given.statistic!r}; there are each, {', '.join(statistics)}")
    return text(statistics[given.statistic]())


def _difference(words: Sequence[str], records: Path) -> str:
    parser = _Parser(prog="difference", add_help=False)
    for argument in ("cell", "metric", "reference"):
        parser.add_argument(argument)
    parser.add_argument("part", nargs="?", default="all")
    parser.add_argument("--over-seeds", action="store_true")
    given = parser.parse_args(words)
    if not is_score(given.metric):
        raise PageError(f"{given.metric} is not compared; tell the values of both")
    cell, reference = _cell(records, given.cell), _cell(records, given.reference)
    if given.part.startswith("s") and given.part[1:].isdecimal():
        seed = int(given.part[1:])
        first, second = (_defined(one.values(given.metric, [seed]), one, given.metric) for one in (reference, cell))
        return points(second[0] - first[0])
    pair = [Cell(given.reference, reference.runs, {}), Cell(given.cell, cell.runs, {})]
    table = cell_table(pair, [given.metric], over_seeds=given.over_seeds)
    gap = table.entries[given.metric, given.cell].gap
    if gap is None:
        raise PageError(" ".join(table.notes) or "the two have no seed in common, or the metric is not defined in all")
    if given.part == "all":
        return gap_text(gap)
    if given.part not in ("mean", "low", "high"):
        raise PageError(f"unknown part {given.part!r}; there are all, mean, low, high, s<seed>")
    if (value := getattr(gap, given.part)) is None:
        raise PageError(" ".join(table.notes) or "there is no interval over seeds with one seed")
    return points(value)


def _setting(words: Sequence[str], records: Path) -> str:
    parser = _Parser(prog="setting", add_help=False)
    for argument in ("cell", "key"):
        parser.add_argument(argument)
    given = parser.parse_args(words)
    runs = _cell(records, given.cell).runs
    settings = yaml.safe_load((runs[min(runs)].path / CONFIG).read_text(encoding="utf-8"))
    return str(_lookup(settings, given.key, CONFIG))


def _json(words: Sequence[str], records: Path) -> str:
    parser = _Parser(prog="json", add_help=False)
    for argument in ("file", "key"):
        parser.add_argument(argument)
    parser.add_argument("format", nargs="?", default="")
    given = parser.parse_args(words)
    return format(_lookup(read_record(records / given.file), given.key, given.file), given.format)


def _lookup(value: Any, key: str, where: str) -> Any:
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            keys = ", ".join(map(str, value)) if isinstance(value, dict) else f"{type(value).__name__}"
            raise PageError(f"{where} has no {key!r}: {part!r} is not in {keys}") from None
    return value


def _cell(records: Path, name: str) -> Cell:
    study, _, cell = name.rpartition("/")
    (found,) = selected(_cells(records, study or "."), [cell])
    if not found.runs:
        raise PageError(f"{name} has no finished run")
    return found


@lru_cache(maxsize=64)
def _cells(records: Path, *studies: str) -> tuple[Cell, ...]:
    for study in studies:
        if not (records / study).is_dir():
            raise PageError(f"there are no records {study!r} in {records.name}/")
    return tuple(read_cells([records / study for study in studies]))


def _defined(values: list[float], cell: Cell, metric: str) -> list[float]:
    if not values:
        raise PageError(f"{metric} is not defined in every run of {cell.name}")
    return values


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def main() -> int:
    """Write the page, or with --check compare it."""
    parser = argparse.ArgumentParser(description="Make docs/results.md from its template and the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not current")
    given = parser.parse_args()
    try:
        text = page(TEMPLATE.read_text(encoding="utf-8"), HERE)
    except PageError as error:
        print(f"{TEMPLATE}:\n{error}", file=sys.stderr)
        return 2
    if given.check:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE} is {'' if current else 'NOT '}what its template and the records give")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
