"""Reading a metadata table (CSV, TSV, Dataverse .tab) as people save it; errors name file, line and column."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fedskew.data.faults import Faults
from fedskew.data.samples import DataError, as_number
from fedskew.data.stores import Store

MAX_TABLE_BYTES = 200 * 2**20
MAX_HEADER_BYTES = 2**16
MAX_AGE = 130.0
MISSING = frozenset({
    "", "na", "n/a", "#n/a", "n.a.", "nan", "none", "null", "unknown", ".", "-", "--", "?",
    "unbekannt", "k.a.", "keine angabe",
})  # fmt: skip
SEPARATORS = ("\t", ",", ";")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_EXCEL_HINT = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2},\d{3}")
_GERMAN_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}\.\d{3}")  # where the column has decimal commas
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d*")
_YEARS = re.compile(r"(.*\d)\s*(j\.?|jahre?|y\.?|yrs?\.?|years?|yo|y/o)", re.IGNORECASE)  # an age with its unit


@dataclass(frozen=True)
class Row:
    """One line of a table: its number, its values by column name (lower case). What is wrong is noted, not raised."""

    line: int
    values: dict[str, str]
    faults: Faults = field(repr=False, compare=False)
    with_comma: frozenset[str] = field(default=frozenset(), repr=False, compare=False)  # columns with decimal commas

    def fault(self, text: str) -> None:
        """Note what is wrong with this line; `Table.check` raises it."""
        self.faults.add(self.line, text)

    def required(self, column: str) -> str:
        """The value of a column that must not be empty."""
        if not self.values[column]:
            self.fault(f"column {column!r} is empty; fill it in or delete the row")
        return self.values[column]

    def text(self, column: str | None) -> str | None:
        """A value as it stands; None if the column does not exist or says that nothing is known."""
        value = self.values.get(column, "") if column else ""
        return None if value.lower() in MISSING else value

    def word(self, column: str | None) -> str | None:
        """`text` in lower case."""
        value = self.text(column)
        return None if value is None else value.lower()

    def age(self, column: str | None) -> float | None:
        """A value as years."""
        value = self.text(column)
        if value is None:
            return None
        unit = _YEARS.fullmatch(value)
        years = self._as_number(unit.group(1) if unit else value, column)
        if years is None or not 0 <= years <= MAX_AGE:
            self.fault(f"age {value!r} is not a number of years from 0 to {MAX_AGE:.0f}; "
                       "correct it, or leave it empty where it is not known")  # fmt: skip
            return None
        return years

    def number(self, column: str) -> float | None:
        """A value as a number."""
        value = self.text(column)
        number = None if value is None else self._as_number(value, column)
        if value is not None and number is None:
            self.fault(f"{column} {value!r} is not a number; correct it, or leave it empty where it is not known")
        return number

    def _as_number(self, value: str, column: str | None) -> float | None:
        if column in self.with_comma and _GERMAN_THOUSANDS.fullmatch(value):
            self.fault(f"{value!r} may be {value} or {value.replace('.', '')}: other values of {column} have a decimal "
                       "comma; write it with a decimal comma or without the point")  # fmt: skip
            return 0.0
        if _THOUSANDS.fullmatch(value):
            self.fault(f"{value!r} may be {value.replace(',', '.')} or {value.replace(',', '')}: "
                       "write it with a decimal point or without the comma")  # fmt: skip
            return 0.0  # the fault above says it all
        return as_number(value)


@dataclass(frozen=True)
class Table:
    """A parsed table."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    encoding: str
    faults: Faults = field(repr=False, compare=False)

    def need(self, *columns: str) -> None:
        """DataError unless all these columns exist."""
        lacking = [column for column in columns if column not in self.columns]
        if lacking:
            raise DataError(
                f"{self.name} has no column {', '.join(lacking)}; its columns are {', '.join(self.columns)}"
            )

    def notes(self) -> list[str]:
        """Whether the encoding had to be guessed."""
        if self.encoding == "utf-8":
            return []
        name = {"cp1252": "cp1252 (Windows Latin-1)"}.get(self.encoding, self.encoding)
        return [f"{self.name} is not UTF-8: read as {name}; if letters look wrong, give its encoding in the manifest"]

    def check(self) -> None:
        """DataError with all that is wrong with the rows that were read; call it after reading them."""
        self.faults.check()


def read_table(store: Store, name: str, separator: str | None = None, encoding: str | None = None) -> Table:
    """Parse a table out of a store.

    Args:
        store: where the file lies.
        name: its name there.
        separator: one character; None recognises tab, comma or semicolon by the header line.
        encoding: as Python names it; None recognises UTF-8, UTF-16 with its mark, and cp1252 (Windows Latin-1).

    Raises:
        DataError: the file is absent, too large, no text, or has no rows. Rows with too many or too few values are
            left out and noted for `Table.check`.
    """
    text, encoding = _decoded(store.read(name, MAX_TABLE_BYTES), encoding, f"{name} in {store.path}")
    try:
        records = list(_records(text, separator))
    except csv.Error as error:
        raise DataError(f"{name} in {store.path} is not a table: {error}") from error
    if len(records) < 2:
        raise DataError(f"{name} in {store.path} holds no rows; expected a header line and one line per image")
    columns = _columns(records[0][1])
    if len(set(columns)) != len(columns):
        raise DataError(f"{name} in {store.path} names a column twice: {', '.join(columns)}")
    faults = Faults(name)
    with_comma = _decimal_commas(columns, [values for _, values in records[1:]])
    rows = [row for line, values in records[1:] if (row := _row(faults, line, columns, values, with_comma)) is not None]
    return Table(name, columns, tuple(rows), encoding, faults)


def header(store: Store, name: str) -> tuple[str, ...]:
    """The column names of a table, lower case; empty if it does not begin like text. What follows is not looked at."""
    content = store.read(name, MAX_TABLE_BYTES)[:MAX_HEADER_BYTES]
    text = content.decode(_marked(content) or "utf-8", errors="replace")
    try:
        found = _columns(next(_records(text, None), (0, []))[1])
    except csv.Error:
        return ()  # only asks "could this be the table?": a file that is no text is not
    return () if any("\0" in name for name in found) else found


def _decoded(content: bytes, encoding: str | None, name: str) -> tuple[str, str]:
    """Text and the name of its encoding."""
    marked, given = _marked(content), encoding is not None
    encoding = encoding or marked or _guessed(content)
    if given and content.startswith(codecs.BOM_UTF8):
        content = content.removeprefix(codecs.BOM_UTF8)  # whoever gives the encoding knows that it lies
    try:
        text = content.decode(encoding)
    except LookupError:
        raise DataError(f"{name}: encoding {encoding!r} is unknown; usual ones are utf-8, cp1252, utf-16") from None
    except UnicodeError as error:
        why = " as the mark at its start says" if marked and not given else ""
        raise DataError(f"{name} is no text in {encoding}{why} ({error}); save it as CSV in UTF-8, or give its true "
                        "encoding in the manifest, as encoding: cp1252") from error  # fmt: skip
    if "\0" in text:
        raise DataError(f"{name} is no text: it holds zero bytes; save the table as CSV in UTF-8")
    return text, {"utf-8-sig": "utf-8"}.get(encoding, encoding)


def _marked(content: bytes) -> str:
    """The encoding that a mark at the start tells; empty if there is none."""
    return next((known for mark, known in _MARKS if content.startswith(mark)), "")


def _guessed(content: bytes) -> str:
    """UTF-8 where the bytes are valid UTF-8, which text in other encodings practically never is."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _records(text: str, separator: str | None) -> Iterator[tuple[int, list[str]]]:
    """Line number and stripped values of every line that is not empty."""
    hint = _EXCEL_HINT.match(text)  # Excel's own first line: sep=;
    skipped, text = (1, text[hint.end() :]) if hint else (0, text)
    separator = separator or (hint.group(1) if hint else _separator(text))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    for values in reader:
        stripped = [value.strip() for value in values]
        if any(stripped):
            yield reader.line_num + skipped, stripped


def _separator(text: str) -> str:
    """What the header line has most columns with. Quoted separators do not count, and what cuts a quoted text apart,
    which leaves quotes inside of values, is none."""
    first = next(iter(text.lstrip("\r\n").splitlines()), "")

    def fit(separator: str) -> tuple[bool, int]:
        columns = next(csv.reader([first], delimiter=separator), [])
        return not any('"' in column for column in columns), len(columns)

    return max(SEPARATORS, key=fit)


def _columns(values: Sequence[str]) -> tuple[str, ...]:
    """Names of columns, lower case, without the nameless ones that spreadsheets leave at the end."""
    names = [value.lower() for value in values]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _decimal_commas(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> frozenset[str]:
    """The columns in which a number has a decimal comma beyond doubt, so that a point may divide thousands."""
    return frozenset(
        column for position, column in enumerate(columns)
        if any(_DECIMAL_COMMA.fullmatch(row[position]) and not _THOUSANDS.fullmatch(row[position])
               for row in rows if len(row) > position)
    )  # fmt: skip


def _row(
    faults: Faults, line: int, columns: Sequence[str], values: Sequence[str], with_comma: frozenset[str]
) -> Row | None:
    if not any(values[len(columns) :]):
        values = values[: len(columns)]
    if len(values) != len(columns):
        faults.add(line, f"{len(values)} values for {len(columns)} columns; check the separator and the quotes")
        return None
    return Row(line, dict(zip(columns, values, strict=True)), faults, with_comma)
