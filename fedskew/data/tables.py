"""Reading a metadata table (CSV, TSV, Dataverse .tab) with errors that name file, line and column."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fedskew.data.archives import Store
from fedskew.data.samples import DataError

MAX_TABLE_BYTES = 200 * 2**20
MAX_AGE = 130.0
_MISSING = frozenset({"", "na", "n/a", "nan", "none", "null", "unknown", "."})
_SEPARATORS = ("\t", ",", ";")


@dataclass(frozen=True)
class Row:
    """One line of a table: its place (for messages) and its values by column name (lower case)."""

    place: str
    values: dict[str, str]

    def required(self, column: str) -> str:
        """The value of a column that must not be empty."""
        value = self.values[column]
        if not value:
            raise DataError(f"{self.place}: column {column!r} is empty; fill it in or delete the row")
        return value

    def text(self, column: str | None) -> str | None:
        """A value as it stands; None if the column does not exist or says that nothing is known."""
        value = self.values.get(column, "") if column else ""
        return None if value.lower() in _MISSING else value

    def word(self, column: str | None) -> str | None:
        """`text` in lower case."""
        value = self.text(column)
        return None if value is None else value.lower()

    def age(self, column: str | None) -> float | None:
        """A value as years; DataError for what is no age."""
        value = self.text(column)
        if value is None:
            return None
        try:
            years = float(value)
        except ValueError:
            years = math.nan
        if not 0 <= years <= MAX_AGE:
            raise DataError(f"{self.place}: age {value!r} is not a number of years from 0 to {MAX_AGE:.0f}; "
                            "correct it, or leave it empty where it is not known")  # fmt: skip
        return years


@dataclass(frozen=True)
class Table:
    """A parsed table."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def need(self, *columns: str) -> None:
        """DataError unless all these columns exist."""
        lacking = [column for column in columns if column not in self.columns]
        if lacking:
            raise DataError(
                f"{self.name} has no column {', '.join(lacking)}; its columns are {', '.join(self.columns)}"
            )


def read_table(store: Store, name: str, separator: str | None = None) -> Table:
    """Parse a table out of a store.

    Args:
        store: where the file lies.
        name: its name there.
        separator: one character; None recognises tab, comma or semicolon by the header line.

    Raises:
        DataError: the file is absent, too large, not UTF-8, has no rows, or a row has too many or too few values.
    """
    content = store.read(name, MAX_TABLE_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} in {store.path} is not UTF-8 text ({error}); save it as CSV in UTF-8") from error
    separator = separator or _separator(text)
    try:
        records = list(_records(text, separator))
    except csv.Error as error:
        raise DataError(f"{name} in {store.path} is not a table: {error}") from error
    if len(records) < 2:
        raise DataError(f"{name} in {store.path} holds no rows; expected a header line and one line per image")
    columns = tuple(value.lower() for value in records[0][1])
    if len(set(columns)) != len(columns):
        raise DataError(f"{name} in {store.path} names a column twice: {', '.join(columns)}")
    return Table(name, columns, tuple(_row(name, line, columns, values) for line, values in records[1:]))


def header(store: Store, name: str) -> tuple[str, ...]:
    """The column names of a table, lower case; empty if the file is not text."""
    first = store.read(name, MAX_TABLE_BYTES).split(b"\n", 1)[0]
    try:
        text = first.decode("utf-8-sig")
        return tuple(value.lower() for _, values in _records(text, _separator(text)) for value in values)
    except (UnicodeDecodeError, csv.Error):
        return ()  # only asks "could this be the table?": a file that is no text is not


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for values in reader:
        stripped = [value.strip() for value in values]
        if any(stripped):
            yield reader.line_num, stripped


def _separator(text: str) -> str:
    first = text.split("\n", 1)[0]
    return max(_SEPARATORS, key=first.count)


def _row(name: str, line: int, columns: Sequence[str], values: Sequence[str]) -> Row:
    if len(values) != len(columns):
        raise DataError(f"{name}, line {line}: {len(values)} values for {len(columns)} columns; "
                        "check the separator and the quotes of that line")  # fmt: skip
    return Row(f"{name}, line {line}", dict(zip(columns, values, strict=True)))
