"""A site's books: the audit log, and beside it a ledger of every answer that left and what it cost.

The ledger is a file like the audit log, chained by hashes and only ever added to. Each answer has two lines: one before
it is written into the audit log, with run, kind, noise and ε so far, of the run and of all runs; and one after, with
the audit log's length and last hash. The audit log in turn holds the hash of the ledger's line. So an emptied, cut or
replaced file of the two does not fit the other, and neither the rounds that a policy allows nor its privacy budget
start again at zero. Whoever cuts both to the same moment is found by the coordinator, which gets the audit log's length
and last hash with every answer and keeps them in the run's record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedskew.site.accounting import NO_PRIVACY, epsilon
from fedskew.site.audit import (
    ANSWERED,
    PREVIOUS,
    START,
    AuditError,
    Entry,
    add_line,
    answers,
    audit_path,
    last_hash,
    locked,
    read_entries,
)
from fedskew.site.policy import Budget

LEDGER, ENTRIES, SHA256, AUDIT = "ledger", "audit-entries", "audit-sha256", "audit"
RECORDED = "recorded"  # outcome of the ledger's second line
MULTIPLIER = "noise-multiplier"  # deviation of the noise over what a site's data can change; 0: no noise


@dataclass(frozen=True)
class Anchor:
    """Where an audit log stood: its lines, and the hash of the last one."""

    entries: int
    sha256: str


@dataclass(frozen=True)
class Books:
    """Audit log and ledger of a site, each whole and fitting the other."""

    audit: Sequence[Entry] = ()
    ledger: Sequence[Entry] = ()
    audit_hash: str = START
    ledger_hash: str = START

    def answers(self, run_id: int | None, kind: str) -> int:
        """Tasks of a kind of a run (None: of all) that were answered: those of the ledger, and of logs before it."""
        earlier = [entry for entry in self.audit if LEDGER not in entry]
        return answers(self.ledger, run_id, kind) + answers(earlier, run_id, kind)

    def multipliers(self, run_id: int | None = None) -> list[float]:
        """Noise multipliers of the updates that left with noise, of a run or of all."""
        return [
            entry[MULTIPLIER] for entry in self.ledger if entry.get(MULTIPLIER) and run_id in (None, entry.get("run"))
        ]

    def without_noise(self) -> int:
        """Answers that left without noise: of these no ε can be told."""
        earlier: int = sum(LEDGER not in entry and entry.get("outcome") == ANSWERED for entry in self.audit)
        known = [entry for entry in self.ledger if entry.get("outcome") == ANSWERED]
        return earlier + sum(not entry.get(MULTIPLIER) for entry in known)


def ledger_path(node_config: Mapping[str, Any]) -> Path:
    """Where a site's ledger lies: its `ledger`, else beside the audit log, as `<its name>.ledger.jsonl`."""
    configured = str(node_config.get("ledger", ""))
    return Path(configured).expanduser() if configured else beside(audit_path(node_config))


def beside(log: Path) -> Path:
    """The ledger of an audit log where no other place is configured."""
    return log.with_name(f"{log.stem}.ledger.jsonl")


def read_books(log: Path, ledger: Path) -> Books:
    """Read both files and hold them against each other.

    Raises:
        AuditError: a chain is broken, or one of the two files was emptied, cut or replaced.
    """
    audit, lines = read_entries(log), read_entries(ledger)
    books = Books(audit, lines, last_hash(log), last_hash(ledger))
    anchored = [line for line in lines if line.get(AUDIT) == str(log.absolute())]
    if anchored and anchored[-1][SHA256] not in _hashes(audit, books.audit_hash):
        raise _cut(log, ledger, f"the ledger saw {anchored[-1][ENTRIES]} entries in it, now it has {len(audit)}")
    noted = [entry[LEDGER] for entry in audit if LEDGER in entry]
    if noted and noted[-1] not in _hashes(lines, books.ledger_hash):
        raise _cut(ledger, log, f"the audit log names a line of it that is gone; now it has {len(lines)}")
    return books


def record_answer(
    log: Path, ledger: Path, entry: Entry, cost: Callable[[Books], Mapping[str, Any]], check: Callable[[Books], None]
) -> Anchor:
    """Write down an answer that is about to leave.

    The ledger's first line comes first: a process that dies after it has counted an answer that did not leave.

    Args:
        entry: for the audit log; `run`, `kind`, `outcome` and `round` go into the ledger too.
        cost: what the ledger is to say of it, see `cost_of`.
        check: called with the books while no other answer can be written; what it raises ends it.

    Returns:
        Where the audit log stands now.

    Raises:
        AuditError: a file cannot be written, or the books do not fit.
    """
    with locked(ledger):
        books = read_books(log, ledger)
        check(books)
        about = {key: entry[key] for key in ("node", "run", "kind", "round", "outcome") if key in entry}
        noted = add_line(ledger, about | dict(cost(books)) | _place(log, Anchor(len(books.audit), books.audit_hash)))
        with locked(log):
            now = Anchor(len(read_entries(log)) + 1, add_line(log, {**entry, LEDGER: noted}))
        add_line(ledger, {"outcome": RECORDED, **_place(log, now)})
    return now


def _place(log: Path, anchor: Anchor) -> dict[str, Any]:
    return {AUDIT: str(log.absolute()), ENTRIES: anchor.entries, SHA256: anchor.sha256}


def cost_of(books: Books, run_id: int, multiplier: float, delta: float) -> dict[str, Any]:
    """What one more answer costs, for the ledger's line: ε of its run and of all runs with it.

    Args:
        multiplier: see `accounting.noise_multiplier`; 0: it leaves without noise.
        delta: at which ε is told.

    Raises:
        AccountingError: dp-accounting is not installed.
    """
    if not multiplier:
        return {MULTIPLIER: 0.0, "privacy": "none"}
    of_run = epsilon([*books.multipliers(run_id), multiplier], delta)
    of_all = epsilon([*books.multipliers(), multiplier], delta)
    return {MULTIPLIER: multiplier, "delta": delta, "epsilon-run": of_run, "epsilon-total": of_all}


def spent(books: Books, delta: float, run_id: int | None = None) -> float:
    """ε of the updates that have left with noise, of a run or of all."""
    return epsilon(books.multipliers(run_id), delta)


def cost_in_words(cost: Mapping[str, Any], budget: Budget | None) -> str:
    """The cost of an answer, for the site's log."""
    if not cost[MULTIPLIER]:
        return f"{NO_PRIVACY}: the policy adds no noise to this update"
    left = f", of a budget of {budget.epsilon:g}" if budget else ", without a budget"
    return (
        f"with this update ε is {cost['epsilon-run']:.4g} for this run and {cost['epsilon-total']:.4g} for all "
        f"runs{left} (δ={cost['delta']:g})"
    )


def is_spent(books: Books, multiplier: float, budget: float, delta: float) -> tuple[float, float] | None:
    """ε so far and with one more answer, if that is more than the budget; None if it may still be given."""
    after = epsilon([*books.multipliers(), multiplier], delta)
    return None if after <= budget and math.isfinite(after) else (spent(books, delta), after)


def _hashes(entries: Sequence[Entry], last: str) -> set[str]:
    return {START, last} | {entry[PREVIOUS] for entry in entries} if entries else {START}


def _cut(path: Path, other: Path, how: str) -> AuditError:
    return AuditError(
        f"{path} does not fit {other}: {how}. Somebody cut, emptied or replaced it, so nothing is answered. Put it "
        "back from a copy; if you put it away yourself, begin a new audit log under another name "
        "(audit-log='/absolute/path' in the node configuration) and keep the ledger"
    )
