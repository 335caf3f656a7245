"""Whose data is in a model, in one line that nobody overlooks, and in a row for each site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedskew.runs.reading import IN, RunFolderError
from fedskew.tools.participation import RoundShares, read_participation, reasons, sites_of

SHOWN = 8  # names in the line; all of them are in the table


@dataclass(frozen=True)
class SiteRow:
    """One site over all rounds.

    Attributes:
        rounds: in which something is known of it.
        contributed: in how many of these its update is in the model.
        last: the last of these; None if there is none.
        share: its part of all weights that made the model, 0 to 1; None where weights are not on record.
        words: of the rounds in which it is not in the model, how many ended with which word.
    """

    name: str
    rounds: int
    contributed: int
    last: int | None
    share: float | None
    words: Mapping[str, int]


@dataclass(frozen=True)
class Coverage:
    """See the module.

    Attributes:
        line: says it in one sentence.
        is_whole: the update of every known site is in the model of every round.
        reasons: why sites are not in it, and rounds that were not accepted.
        unknown: why nothing is known; empty if it is.
    """

    line: str
    is_whole: bool
    sites: Sequence[SiteRow] = ()
    rounds: Sequence[RoundShares] = ()
    reasons: Sequence[str] = ()
    unknown: str = ""


NOT_ON_RECORD = Coverage("Whose data is in this model is not on record.", is_whole=False)


def coverage_of(folder: Path, last: int | None = None) -> Coverage:
    """Whose data is in a model of a run.

    Args:
        last: the round that the model is of; the last finished one if None.
    """
    try:
        rounds = [row for row in read_participation(folder) if last is None or row.number <= last]
    except RunFolderError as error:  # of a version that did not record it
        return replace(NOT_ON_RECORD, unknown=str(error))
    if not rounds:
        return Coverage("No site's data is in this model yet: no round with sites has ended.", is_whole=False)
    rows = [_row(site, rounds) for site in sites_of(rounds)]
    return Coverage(*_line(rows, rounds), sites=rows, rounds=rounds, reasons=list(reasons(rounds)))


def _row(site: str, rounds: Sequence[RoundShares]) -> SiteRow:
    told = [(row.number, row.shares[site]) for row in rounds if site in row.shares]
    part = [number for number, share in told if share.outcome == IN]
    words: dict[str, int] = {}
    for _, share in told:
        if share.outcome != IN:
            words[share.outcome] = words.get(share.outcome, 0) + 1
    total = sum(share.weight for row in rounds for share in row.shares.values())
    own = sum(share.weight for _, share in told)
    return SiteRow(site, len(told), len(part), max(part, default=None), own / total if total else None, words)


def _line(rows: Sequence[SiteRow], rounds: Sequence[RoundShares]) -> tuple[str, bool]:
    never = [row.name for row in rows if not row.contributed]
    partly = [f"{row.name} ({row.contributed} of {len(rounds)} rounds)" for row in rows
              if 0 < row.contributed < len(rounds)]  # fmt: skip
    kept = [row.number for row in rounds if row.kept]
    count = len(rows) - len(never)
    verb = "is" if count == 1 else "are"
    text = f"The data of {count} of {len(rows)} site{'s' * (len(rows) != 1)} {verb} in this model"
    if not (never or partly or kept):
        return f"{text}, in every one of its {len(rounds)} rounds.", True
    parts = [f"{text}."]
    if never:
        parts.append(f"Never in it: {_some(never)}.")
    if partly:
        parts.append(f"Not in every round: {_some(partly)}.")
    if kept:
        parts.append(f"{len(kept)} of {len(rounds)} rounds were not accepted and changed nothing.")
    return " ".join(parts), False


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
