"""What a federation's sites and its proxy have written down themselves: independent of the coordinator's record."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

from deployment.wire import read_wire


def answered(log: Path) -> dict[tuple[int, int], list[int]]:
    """(run of Flower, round) → numbers of the lines of a site's audit log in which it answered that task, from 1 on."""
    found, text = defaultdict(list), log.read_text(encoding="utf-8") if log.is_file() else ""
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        entry = json.loads(line)
        if (entry["kind"], entry["outcome"]) == ("train", "answered"):
            found[entry["run"], entry["round"]].append(number)
    return dict(found)


def line_hash(log: Path, number: int) -> str:
    """SHA-256 of a line, without its newline."""
    return hashlib.sha256(log.read_bytes().split(b"\n")[number - 1]).hexdigest()


def contacts(wire: Path, address: str) -> list[float]:
    """When (Unix seconds) a SuperNode at an address asked for tasks, and was not refused."""
    return [
        float(row["time"])
        for row in read_wire(wire)
        if (row["address"], row["status"]) == (address, 200) and row["uri"].endswith("/pull-messages")
    ]
