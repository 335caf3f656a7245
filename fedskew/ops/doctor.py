"""`fedskew doctor`: which checks a coordinator and a site need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fedskew.ops.check_data import Expected, check_data, count_images
from fedskew.ops.check_host import check_commands, check_cuda, check_disk, check_memory, check_versions
from fedskew.ops.check_network import Endpoint, check_superlink
from fedskew.ops.check_node import check_node_key, check_nodes, check_registered
from fedskew.ops.check_policy import check_audit, check_policy, check_spent
from fedskew.ops.check_tls import check_server_files
from fedskew.ops.findings import FAIL, Check, Finding, fail, run_checks, warn
from fedskew.paths import cache_directory, home, runs_directory
from fedskew.site.audit import audit_path
from fedskew.site.ledger import ledger_path
from fedskew.text import nearest

NODE_PATHS = ("data-dir", "manifest", "cache-dir", "policy", "audit-log", "ledger", "signing-key")
NODE_KEYS = (*NODE_PATHS, "name", "partition-id", "num-partitions")


@dataclass(frozen=True)
class Data:
    """Which data to look at and what the run expects of it. `images`: how many to decode, 0 for all."""

    folder: Path | None = None
    manifest: Path | None = None
    expected: Expected = field(default_factory=Expected)
    images: int = 0


@dataclass(frozen=True)
class Server:
    """The coordinator's own files, and the names by which sites reach it."""

    certificate: Path | None = None
    key: Path | None = None
    hosts: tuple[str, ...] = ()


def diagnose_site(
    superlink: Endpoint | None, node_key: Path | None, data: Data, node_config: Mapping[str, Any]
) -> list[Finding]:
    """Everything that a hospital needs for its SuperNode; `node_config` is what `--node-config` will hold."""
    policy, log = str(node_config.get("policy", "")), audit_path(node_config)
    ledger = ledger_path(node_config)
    cache = cache_directory(str(node_config.get("cache-dir", "")))
    found = run_checks([*_host(), ("disk", partial(check_disk, {"cache disk": cache}))])
    reached = _reach(superlink, clock=True, public=True)
    found += reached or [_not_given("SuperLink", "--superlink HOST:PORT")]
    found += _key(superlink, node_key, connected=bool(reached) and not _fails(reached))
    found += run_checks([("node config", partial(check_node_config, node_config))])
    found += _data(data)
    count = partial(count_images, data.folder, data.manifest) if data.folder else None
    found += run_checks([("policy", partial(check_policy, Path(policy) if policy else None, count))])
    if policy or "audit-log" in node_config:
        found += run_checks(
            [
                ("disk", partial(check_disk, {"audit disk": log.parent})),
                ("audit log", partial(check_audit, log, ledger)),
            ]
        )
        if not any(finding.status == FAIL and finding.subject in ("policy", "audit log") for finding in found):
            check = partial(check_spent, Path(policy) if policy else None, log, ledger)
            found += run_checks([("privacy spent", check)])
    return found


def diagnose_data(data: Data) -> list[Finding]:
    """What training would find in a data set, and where its decoded images would go; nothing of a federation."""
    return [*_data(data), *run_checks([("disk", partial(check_disk, {"cache disk": cache_directory("")}))])]


def diagnose_coordinator(
    superlink: Endpoint | None, public: Endpoint | None, server: Server, data: Data, output_dir: str
) -> list[Finding]:
    """Everything that the coordinator needs: its SuperLink, its certificate, its sites, its own data.

    Args:
        superlink: the SuperLink as this machine reaches it.
        public: the address that sites use; its control routes must be closed.
    """
    folders = {"runs disk": runs_directory(output_dir), "cache disk": cache_directory(""), "fedskew home": home()}
    found = run_checks([*_host(), ("disk", partial(check_disk, folders))])
    if server.certificate:
        roots = superlink.roots if superlink else None
        key = server.key or server.certificate.with_suffix(".key")
        check = partial(check_server_files, server.certificate, key, roots, server.hosts)
        found += run_checks([("server certificate", check)])
    else:
        found.append(
            _not_given("server certificate", "--server-cert FILE (and --host NAME for each name that sites use)")
        )
    reached = _reach(superlink, clock=False, public=False)
    found += reached
    if superlink and not _fails(reached):
        found += run_checks([("sites", partial(check_nodes, superlink))])
    outside = _reach(public, clock=False, public=True)
    outside = outside or [_not_given("address", "--public HOST:PORT, the address that sites use")]
    found += [replace(finding, subject=f"public {finding.subject}") for finding in outside if finding not in reached]
    return found + _data(data)


def check_node_config(node_config: Mapping[str, Any]) -> list[Finding]:
    """Keys that nobody reads, and paths that are not absolute: the SuperNode may start elsewhere."""
    found = []
    for key, value in node_config.items():
        if key not in NODE_KEYS:
            near = nearest(key.replace("_", "-"), NODE_KEYS)
            remedy = f"did you mean {near!r}?" if near else f"keys are {', '.join(NODE_KEYS)}"
            found.append(warn("node config", f"nothing reads {key!r}", remedy))
        elif key in NODE_PATHS and not Path(str(value)).is_absolute():
            found.append(
                fail("node config", f"{key} is {value!r}, a relative path", f"{key}='{Path(str(value)).resolve()}'")
            )
    return found


def _host() -> Sequence[tuple[str, Check]]:
    return (("versions", check_versions), ("commands", check_commands), ("CUDA", check_cuda), ("memory", check_memory))


def _reach(endpoint: Endpoint | None, *, clock: bool, public: bool) -> list[Finding]:
    if endpoint is None:
        return []
    return run_checks([("network", partial(check_superlink, endpoint, clock=clock, public=public))])


def _key(superlink: Endpoint | None, node_key: Path | None, *, connected: bool) -> list[Finding]:
    if node_key is None:
        return [_not_given("node key", "--node-key FILE")]
    found = run_checks([("node key", partial(check_node_key, node_key))])
    if superlink and connected and not _fails(found):
        return [*found, *run_checks([("registration", partial(check_registered, superlink, node_key))])]
    remedy = "mend the lines above first, or let the coordinator look: fedskew doctor coordinator"
    return [*found, warn("registration", "unknown: the SuperLink could not be asked", remedy)]


def _data(data: Data) -> list[Finding]:
    if data.folder is None:
        return [_not_given("data", "--data-dir FOLDER")]
    check = partial(check_data, data.folder, data.manifest, data.expected, most=data.images)
    return run_checks([("data", check)])


def _fails(findings: Sequence[Finding]) -> bool:
    return any(finding.status == FAIL and finding.subject != "control routes" for finding in findings)


def _not_given(subject: str, option: str) -> Finding:
    return warn(subject, "not checked", f"give {option}")
