"""How to make a run again: the command, the configuration without places of this machine, hashes and versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fedskew.config.load import to_mapping
from fedskew.report.content import Content
from fedskew.runs.reading import PLACES
from fedskew.text import duration


def commands_of(content: Content) -> str:
    """What makes the run again, and what looks at it."""
    config, nodes = content.config, content.split.get("nodes")
    lines = []
    if config is not None:
        data = "" if config.data.source == "generated" else " --data-dir DIR"
        share = f" --nodes {nodes}" if nodes else ""
        where = "" if config.data.clients == "partition" else " --connection NAME"
        lines.append(f"fedskew run --preset config.yaml{data}{share}{where} --name {content.name}-again")
    lines.append(f"fedskew compare {content.name} {content.name}-again")
    return "\n".join(lines)


def configuration_of(content: Content) -> str:
    """The resolved configuration as YAML, without where things lie: that is this machine's, and changes no figure."""
    if content.config is None:
        return ""
    sections = {
        section: {key: value for key, value in values.items() if f"{section}.{key}" not in PLACES}
        if isinstance(values, dict) else values
        for section, values in to_mapping(content.config).items()
    }  # fmt: skip
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def facts_of(content: Content) -> list[tuple[str, str]]:
    """Name and value of what a run's figures depend on, where it is on record."""
    lineage, split = content.about.get("lineage") or {}, content.split
    start = content.starts[-1] if content.starts else {}
    counts = split.get("counts") or {}
    facts = {
        "Split hash": split.get("split_hash") or lineage.get("split_hash"),
        "Samples hash": split.get("samples_hash"),
        "Split": _split_line(counts, split.get("nodes")),
        "fedskew": start.get("fedskew") or lineage.get("fedskew"),
        "Code (SHA-256)": lineage.get("code"),
        "Plugins": ", ".join(f"{name} {digest[:12]}" for name, digest in (lineage.get("plugins") or {}).items()),
        "torch": start.get("torch"),
        "Device": start.get("device"),
        "Started": ", ".join(f"{line['time']} (round {line['round']})" for line in content.starts),
        "Time": duration(sum(record.get("seconds", 0.0) for record in content.records)),
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def _split_line(counts: Mapping[str, Any], nodes: int | None) -> str:
    if not counts:
        return ""
    test, public = (sum(counts.get(name, {}).values()) for name in ("test", "open"))
    parts = [sum(part.values()) for part in counts.get("parts", ())]
    shared = f", {sum(parts):,} at {nodes} nodes ({min(parts):,} to {max(parts):,} each)" if parts else ""
    return f"{test:,} test and {public:,} open images at the server{shared}"
