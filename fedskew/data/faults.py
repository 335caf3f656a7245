"""What is wrong with a table, gathered line by line, so that a person can mend all of it at once."""

from __future__ import annotations

from fedskew.data.samples import DataError

SHOWN = 20  # different faults in a message
LINES = 3  # line numbers of one fault


class Faults:
    """The faults of one table; equal ones are told once, with their lines."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines: dict[str, list[int]] = {}

    def add(self, line: int, text: str) -> None:
        """Remember what is wrong with a line."""
        lines = self._lines.setdefault(text, [])
        if not lines or lines[-1] != line:
            lines.append(line)

    def check(self) -> None:
        """Raise everything that was found.

        Raises:
            DataError: one fault as one line, several as a list of at most 20 and how many more there are.
        """
        ordered = sorted(self._lines.items(), key=lambda fault: fault[1][0])
        found = [f"{_places(lines)}: {text}" for text, lines in ordered]
        if len(found) == 1:
            raise DataError(f"{self._name}, {found[0]}")
        if found:
            more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            listed = "\n  ".join([*found[:SHOWN], *more])
            raise DataError(f"{self._name} has {len(found)} faults:\n  {listed}")


def _places(lines: list[int]) -> str:
    if len(lines) == 1:
        return f"line {lines[0]}"
    more = f" and {len(lines) - LINES} more" if len(lines) > LINES else ""
    return f"lines {', '.join(map(str, lines[:LINES]))}{more}"
