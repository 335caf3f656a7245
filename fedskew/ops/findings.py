"""What a check finds, and how a person and a script read it."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

OK, WARN, FAIL = "ok", "warn", "FAIL"
WIDTH = 110


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what it is like, and what to do about it."""

    status: str
    subject: str
    message: str
    remedy: str = ""


Check = Callable[[], list[Finding]]


def ok(subject: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(OK, subject, message)


def warn(subject: str, message: str, remedy: str) -> Finding:
    """It works, or nobody can tell; look at it."""
    return Finding(WARN, subject, message, remedy)


def fail(subject: str, message: str, remedy: str) -> Finding:
    """It does not work like this."""
    return Finding(FAIL, subject, message, remedy)


def run_checks(checks: Sequence[tuple[str, Check]]) -> list[Finding]:
    """The findings of all checks in order. A check that breaks becomes a finding; it never stops the others."""
    found: list[Finding] = []
    for subject, check in checks:
        try:
            found += check()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - Flower's helpers leave with SystemExit
            text = f"this check broke down: {type(error).__name__}: {error}"
            found.append(fail(subject, text, "report it with this line; the other checks do not depend on it"))
    return found


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if anything fails, else 0: warnings do not stop a script."""
    return int(any(finding.status == FAIL for finding in findings))


def to_json(findings: Sequence[Finding]) -> str:
    """For scripts: `{"ok": …, "findings": […]}`."""
    return json.dumps({"ok": not exit_code(findings), "findings": [asdict(finding) for finding in findings]}, indent=2)


def to_lines(findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """(status, text) of every line for people: findings, their remedies indented below, the count at the end."""
    columns = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    width = max((len(finding.subject) for finding in findings), default=0)
    indent = " " * (6 + width + 2)
    lines = []
    for finding in findings:
        head = f"{finding.status:<4}  {finding.subject:<{width}}  "
        lines.append((finding.status, textwrap.fill(finding.message, columns, initial_indent=head,
                                                    subsequent_indent=indent, break_long_words=False,
                                                    break_on_hyphens=False)))  # fmt: skip
        if finding.remedy:
            lines.append(("", textwrap.fill(finding.remedy, columns, initial_indent=f"{indent}→ ",
                                            subsequent_indent=f"{indent}  ", break_long_words=False,
                                            break_on_hyphens=False)))  # fmt: skip
    counts = {status: sum(finding.status == status for finding in findings) for status in (FAIL, WARN, OK)}
    worst = next((status for status in (FAIL, WARN, OK) if counts[status]), OK)
    problems, warnings = (f"{counts[key]} {word}{'' if counts[key] == 1 else 's'}"
                          for key, word in ((FAIL, "problem"), (WARN, "warning")))  # fmt: skip
    return [*lines, (worst, f"{problems}, {warnings}, {counts[OK]} ok")]
