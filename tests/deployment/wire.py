"""Bytes on the wire from nginx's log: what every site's requests and answers cost, without TCP/IP and TLS framing.

python tests/deployment/wire.py wire.jsonl PKI_COORDINATOR_FOLDER
"""

from __future__ import annotations

import base64
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key


@dataclass
class Traffic:
    """What passed between a site and the coordinator."""

    up: int = 0
    down: int = 0
    requests: int = 0
    by_route: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def read_wire(log: Path, start: float = 0.0, end: float = float("inf")) -> list[dict]:
    """The log's lines between two times (Unix seconds)."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if start <= float(row["time"]) < end]


def traffic(rows: Iterable[dict], keys: Path) -> dict[str, Traffic]:
    """Site name → its traffic; the public keys (`NAME.pub`) lie in `keys`."""
    names, found = _names(keys), defaultdict(Traffic)
    for row in rows:
        site = found[names.get(row["key"], row["key"][:12] or "no key")]
        site.up += int(row["in"])
        site.down += int(row["out"])
        site.requests += 1
        site.by_route[row["uri"].rsplit("/", 1)[-1]] += int(row["in"]) + int(row["out"])
    return dict(found)


def _names(keys: Path) -> dict[str, str]:
    """What Flower sends as `flwr-public-key` → name."""
    found = {}
    for path in keys.glob("*.pub"):
        pem = load_ssh_public_key(path.read_bytes()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        found[base64.urlsafe_b64encode(pem).decode()] = path.stem
    return found


if __name__ == "__main__":
    for name, sums in sorted(traffic(read_wire(Path(sys.argv[1])), Path(sys.argv[2])).items()):
        print(f"{name}: {sums.up / 1e6:.2f} MB up, {sums.down / 1e6:.2f} MB down, {sums.requests} requests",
              dict(sums.by_route))  # fmt: skip
