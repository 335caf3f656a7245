"""Whose data is in which round: of every site and round what became of it, from a run folder's record.

A model of round r holds what is "in" in round r, and what was in the rounds before it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fedskew.runs.reading import (
    FAILED,
    IN,
    LATE,
    MISSING,
    REFUSED,
    UNUSED,
    RunFolderError,
    read_flower_runs,
    read_records,
)

ABSENT = "-"
LIMITED = "*"
ROUNDS = 7  # characters of the first column: `100-120`
LEGEND = (
    (IN, "its update is in the model of that round"),
    (f"{IN}{LIMITED}", "the same, with less weight than its examples (federation.max-weight-ratio)"),
    (UNUSED, "a good answer that is not in the model, as the round was not accepted or the aggregation took another's"),
    (LATE, "asked, no answer in time"),
    (MISSING, "not connected, or vanished"),
    (REFUSED, "its answer was set aside"),
    (FAILED, "it answered that it did not do the task"),
    (ABSENT, "not asked, or not known yet"),
)


@dataclass(frozen=True)
class Share:
    """What became of one site in one round.

    Attributes:
        outcome: one of `record.OUTCOMES`.
        weight: of its update in the new global model; 0 where it is not in it.
        examples: what it said it trained on, where it weighs less than that; else None.
        reason: why it is not in the model, if that is on record.
    """

    outcome: str
    weight: int = 0
    examples: int | None = None
    reason: str = ""

    @property
    def word(self) -> str:
        """As the table shows it."""
        return self.outcome + (LIMITED if self.examples is not None else "")


@dataclass(frozen=True)
class RoundShares:
    """What became of all sites in one round.

    Attributes:
        flower_run: Flower's number of the attempt that finished the round, as sites' audit logs name it; None where it
            is not on record.
        kept: why the global model stayed as it was; empty if the round was accepted.
    """

    number: int
    flower_run: int | None
    kept: str
    shares: Mapping[str, Share]


def read_participation(folder: Path) -> list[RoundShares]:
    """Every finished round of a run, without round 0, in which no site has a part.

    Raises:
        RunFolderError: no run folder, or one of a version that did not record it.
    """
    starts, rounds = read_flower_runs(folder), []
    for record in read_records(folder):
        number = record["round"]
        if "participation" not in record:
            raise RunFolderError(
                f"round {number} of {folder} was recorded by an earlier version, which did not write down whose update "
                f"is in the model; its metrics.jsonl says who answered (nodes) and who was left out (failed)"
            )
        if number:
            attempts = [run for first, run in starts if first <= number]
            rounds.append(RoundShares(number, attempts[-1] if attempts else None, _kept(record), _shares(record)))
    return rounds


def sites_of(rounds: Sequence[RoundShares]) -> list[str]:
    """Every site that any round names."""
    return sorted({site for row in rounds for site in row.shares})


def participation_data(folder: Path, rounds: Sequence[RoundShares]) -> dict[str, Any]:
    """The same, JSON-ready."""
    return {
        "run": str(folder),
        "sites": sites_of(rounds),
        "rounds": [
            {"round": row.number, "flower_run": row.flower_run, "accepted": not row.kept, "kept": row.kept or None,
             "sites": {site: _share_data(share) for site, share in sorted(row.shares.items())}}
            for row in rounds
        ],
    }  # fmt: skip


def participation_text(rounds: Sequence[RoundShares], width: int) -> str:
    """A table with a row for each round, alike ones in one, then the reasons.

    Args:
        width: characters of a line; sites that find no room follow in a table of their own.
    """
    if not rounds:
        return "no round with sites is finished yet"
    sites = sites_of(rounds)
    parts = ["\n".join(_table(rounds, block)) for block in _blocks(sites, width)]
    words = {_word(row, site) for row in rounds for site in sites}
    legend = [f"{word}: {meaning}" for word, meaning in LEGEND if word in words]
    parts.append("\n".join(line for text in legend for line in _wrapped(text, width)))
    parts.append("\n".join(line for text in reasons(rounds) for line in _wrapped(text, width)))
    return "\n\n".join(part for part in parts if part)


def _kept(record: Mapping[str, Any]) -> str:
    if not record["kept_model"]:
        return ""
    if record["rolled_back"]:
        return f"rolled back: {record['rolled_back']}"
    return record["no_effect"] or "too few good answers for federation.quorum"


def _shares(record: Mapping[str, Any]) -> dict[str, Share]:
    limited, weights, reasons = record["limited"], record["weights"], record["failed"]
    shares = {}
    for site, outcome in record["participation"].items():
        examples = limited[site]["examples"] if outcome == IN and site in limited else None
        reason = "" if outcome == IN else reasons.get(site, "")  # of one that is in: what came of its evaluation
        shares[site] = Share(outcome, weights.get(site, 0), examples, reason)
    return shares


def _share_data(share: Share) -> dict[str, Any]:
    return vars(share) | {"reason": share.reason or None}


def _blocks(sites: Sequence[str], width: int) -> Iterator[list[str]]:
    """Sites whose columns fit beside each other."""
    block: list[str] = []
    for site in sites:
        if block and _line_width([*block, site]) > width:
            yield block
            block = []
        block.append(site)
    if block:
        yield block


def _line_width(sites: Sequence[str]) -> int:
    return ROUNDS + sum(1 + _column(site) for site in sites)


def _column(site: str) -> int:
    return max(len(site), len(REFUSED))


def _table(rounds: Sequence[RoundShares], sites: Sequence[str]) -> Iterator[str]:
    def words(row: RoundShares) -> tuple[str, ...]:
        return tuple(_word(row, site) for site in sites)

    def line(first: str, cells: Sequence[str]) -> str:
        row = " ".join(f"{cell:<{_column(site)}}" for site, cell in zip(sites, cells, strict=True))
        return f"{first:>{ROUNDS}} {row}".rstrip()

    yield line("round", sites)
    for cells, alike in groupby(rounds, key=words):
        yield line(_span([row.number for row in alike]), cells)


def reasons(rounds: Sequence[RoundShares]) -> Iterator[str]:
    """Rounds that were not accepted, and of every site why it is not in the model; alike ones in one line."""
    yield from (f"round {row.number} was not accepted: {row.kept}" for row in rounds if row.kept)
    for site in sites_of(rounds):
        left_out = [(row.number, row.shares[site]) for row in rounds if site in row.shares]
        for outcome, group in groupby(left_out, key=lambda pair: pair[1].outcome):
            found = list(group)
            told = list(dict.fromkeys(share.reason for _, share in found if share.reason))
            if told:
                more = f" (and {len(told) - 1} more like it: --json)" if len(told) > 1 else ""
                yield f"{site}, {_rounds([number for number, _ in found])}, {outcome}: {told[0]}{more}"
    for first, rows in groupby(rounds, key=lambda row: row.flower_run):
        numbers = [row.number for row in rows]
        if first is not None:
            yield f"{_rounds(numbers)}: run {first} in the sites' audit logs"


def _word(row: RoundShares, site: str) -> str:
    return row.shares[site].word if site in row.shares else ABSENT


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _rounds(numbers: Sequence[int]) -> str:
    return f"round{'s' if len(numbers) > 1 else ''} {_span(numbers)}"


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)
