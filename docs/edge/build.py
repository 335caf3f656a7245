"""Make docs/edge.md: the prose of template.md, the figures of the records in benchmarks/results.

    python docs/edge/build.py            # or: make results
    python docs/edge/build.py --check    # exit code 1 if the page is not what the template and the records give

What stands in {{…}} in the template is replaced:

    {{models RECORD}}              a row for each shape and form of `benchmarks/edge.py`
    {{ways RECORD}}                of `edge.py ways`
    {{parts RECORD}}               of `edge.py parts`
    {{loss RECORD}}                of `edge_loss.py`
    {{machine RECORD}}             where and when
    {{value RECORD COLUMN FORMAT KEY=VALUE…}}     of the one row in which these are so
    {{quotient RECORD COLUMN FORMAT KEY=VALUE… / KEY=VALUE…}}     of two such values
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TEMPLATE, PAGE = HERE / "template.md", HERE.parent / "edge.md"
RECORDS = HERE.parents[1] / "benchmarks" / "results"
NOTICE = "<!-- Made by `make results` from edge/template.md and benchmarks/results: change those. -->\n"
DIRECTIVE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
LEAST = 0.02  # of the time, for an operator to have a row
Row = Mapping[str, Any]


class PageError(ValueError):
    """A directive that cannot be followed."""


def page(template: str, records: Path) -> str:
    """The page that a template gives.

    Raises:
        PageError: a directive cannot be followed; the message holds it.
    """

    def replacement(found: re.Match[str]) -> str:
        name, *words = shlex.split(found[1]) or [""]
        if name not in DIRECTIVES or not words:
            raise PageError(f"{{{{{found[1]}}}}}: expected one of {', '.join(DIRECTIVES)}, and a record")
        try:
            record = json.loads((records / f"{words[0]}.json").read_text(encoding="utf-8"))
            return DIRECTIVES[name](record, words[1:])
        except (OSError, ValueError, KeyError) as error:
            raise PageError(f"{{{{{found[1]}}}}}: {type(error).__name__}: {error}") from error

    return NOTICE + DIRECTIVE.sub(replacement, template)


def _models(record: Row, _: Sequence[str]) -> str:
    head = ("model", "parameters", "MACs", "as", "ms, batch 1", "95 %", "÷ dense fp32", "images/s, batch 16", "file MB",
            "÷ dense fp32", "memory MB", "start CPU s")  # fmt: skip
    rows = (
        (row["shape"], f"{row['parameters'] / 1e6:.2f} M", _share(row["macs_share"]), row["form"],
         f"{row['p50_ms']:.2f}", f"{row['p95_ms']:.2f}", f"{row['ratio']:.3f}", f"{row['images_s']:.1f}",
         f"{row['file_bytes'] / 1e6:.2f}", f"{row['size']:.3f}", f"{row['memory_bytes'] / 1e6:.0f}",
         f"{row['startup_cpu_s']:.2f}")
        for row in record["rows"]
    )  # fmt: skip
    return _table(head, rows)


def _ways(record: Row, _: Sequence[str]) -> str:
    rows = ((row["model"], f"{row['p50_ms']:.1f}", f"{row['ratio']:.3f}", f"{row['file_bytes'] / 1e6:.2f}")
            for row in record["rows"])  # fmt: skip
    return _table(("int8", "ms, batch 1", "÷ fp32", "file MB"), rows)


def _parts(record: Row, _: Sequence[str]) -> str:
    columns = [name for name in record["rows"][0] if name != "operator"]
    large = [row for row in record["rows"] if max(row[name] for name in columns) >= LEAST]
    rows = [(f"`{row['operator']}`", *(_share(row[name]) for name in columns)) for row in large]
    rest = [sum(row[name] for row in record["rows"] if row not in large) for name in columns]
    return _table(("operator of ONNX Runtime", *columns), [*rows, ("all others", *map(_share, rest))])


def _loss(record: Row, _: Sequence[str]) -> str:
    head = ["parameters left", "way", "file MB"]
    for where in ("open", "test"):
        head += [f"same class, {where}", f"balanced accuracy, {where}", f"logits, {where}"]
    rows = []
    for row in record["rows"]:
        cells = [_share(row["parameters_share"]), row["way"], f"{row['bytes'] / 1e6:.2f}"]
        for where in ("open", "test"):
            cells += [f"{100 * row[f'{where} same']:.2f} %", f"{100 * row[f'{where} balanced accuracy']:.2f} %",
                      f"{row[f'{where} logits']:.2g}"]  # fmt: skip
        rows.append(cells)
    return _table(head, rows)


def _machine(record: Row, _: Sequence[str]) -> str:
    found = record["machine"]
    return (f"{found['date']}, {found['cores']} cores of {found['processor']}, load {found['load']}, torch "
            f"{found['torch']}, Python {found['python']}")  # fmt: skip


def _value(record: Row, words: Sequence[str]) -> str:
    column, form, *conditions = words
    return format(_one(record, column, conditions), form)


def _quotient(record: Row, words: Sequence[str]) -> str:
    column, form, *conditions = words
    middle = conditions.index("/")
    return format(_one(record, column, conditions[:middle]) / _one(record, column, conditions[middle + 1 :]), form)


def _one(record: Row, column: str, conditions: Sequence[str]) -> Any:
    wanted = dict(condition.split("=", 1) for condition in conditions)
    rows = [row for row in record["rows"] if all(str(row[key]) == value for key, value in wanted.items())]
    if len(rows) != 1:
        raise PageError(f"{len(rows)} rows have {wanted}")
    return rows[0][column]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


DIRECTIVES: dict[str, Callable[[Row, Sequence[str]], str]] = {
    "models": _models, "ways": _ways, "parts": _parts, "loss": _loss, "machine": _machine, "value": _value,
    "quotient": _quotient,
}  # fmt: skip


def main() -> int:
    """Write the page, or with --check compare it."""
    parser = argparse.ArgumentParser(description="Make docs/edge.md from its template and the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is not current")
    given = parser.parse_args()
    try:
        text = page(TEMPLATE.read_text(encoding="utf-8"), RECORDS)
    except PageError as error:
        print(f"{TEMPLATE}: {error}", file=sys.stderr)
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
