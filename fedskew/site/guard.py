"""Start Flower's own SuperNode, but let it run only the app bundles whose SHA-256 the site's policy pins.

    fedskew site --superlink coordinator:8443 --root-certificates ca.crt --auth-supernode-private-key site-a \\
      --node-config "data-dir='/data' policy='/etc/fedskew/policy.yaml'"

Flower has a gate before any code of a bundle is stored, installed or imported: `--trusted-entities` runs only bundles
signed by one of the keys it lists. This launcher makes a fresh key that never leaves the process, names it as the only
trusted one, and signs a bundle when it is fetched if, and only if, the policy pins its hash. Signatures that the
SuperLink sent are thrown away. Should a new Flower version rename the function wrapped here, the launcher does not
start; should Flower no longer call it, nothing is signed and Flower itself refuses every bundle: it fails closed.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedskew.errors import FedskewError
from fedskew.flower import (
    Fab,
    FlowerError,
    Run,
    create_message_to_sign,
    get_fab_config,
    get_metadata_from_config,
    parse_config_args,
    supernode_internal,
)
from fedskew.site.audit import AuditError, append_entry, audit_path, site_name
from fedskew.site.policy import PolicyError, PolicyRefusal, check_task
from fedskew.site.policy_file import load_policy
from fedskew.text import printable

KEY_ID = "fpk_site_policy"
KEY_OPTION, SIGNING_KEY = "--auth-supernode-private-key", "signing-key"
HOOK = "http_request_response"  # of Flower's SuperNode: makes the connection that fetches runs and bundles
ALLOWED, REFUSED = "allowed", "refused"


class GuardError(FedskewError, RuntimeError):
    """What fedskew puts into Flower's SuperNode does not fit it, so it must not start; says why and what to do."""


class BundleGuard:
    """Judges the bundles that a SuperNode fetches, and signs the ones that the policy pins.

    Args:
        policy: read again for every run, so that pins can be added without a restart.
        log: audit log that every judgement is appended to.
        node: the site's name in it.
    """

    def __init__(self, policy: Path, log: Path, node: str) -> None:
        self._policy, self._log, self._node = policy, log, node
        self._key = Ed25519PrivateKey.generate()
        self._runs: dict[int, Run] = {}

    def trusted_entities(self) -> dict[str, str]:
        """What Flower's `--trusted-entities` file holds: this process's key alone."""
        return {KEY_ID: self._key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()}

    def wrap(self, connect: Callable[..., Any]) -> Callable[..., Any]:
        """Flower's connection function with this guard around the two calls that fetch a run and its bundle."""

        @contextmanager
        def guarded(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*args, **kwargs) as connection:
                node_id, receive, send, get_run, get_fab, *rest = connection
                yield (node_id, receive, send, self._watch_runs(get_run), self._sign_pinned(get_fab), *rest)

        return guarded

    def _watch_runs(self, get_run: Callable[[int], Run]) -> Callable[[int], Run]:
        def watched(run_id: int) -> Run:
            self._runs[run_id] = run = get_run(run_id)
            return run

        return watched

    def _sign_pinned(self, get_fab: Callable[[str, int], Fab]) -> Callable[[str, int], Fab]:
        def signed(fab_hash: str, run_id: int) -> Fab:
            fab = get_fab(fab_hash, run_id)
            digest = hashlib.sha256(fab.content).hexdigest()
            reason = self._objection(fab, digest, fab_hash, run_id) or self._record(run_id, digest, ALLOWED, "")
            fab.verifications = {}
            if reason:
                self._record(run_id, digest, REFUSED, reason)
            else:
                fab.verifications = self._signature(fab)
            print(printable(f"site policy: bundle {digest} of run {run_id}: {reason or ALLOWED}"), flush=True)
            return fab

        return signed

    def _objection(self, fab: Fab, digest: str, announced: str, run_id: int) -> str:
        """Why a bundle must not run; empty if it may."""
        try:
            policy, run = load_policy(self._policy), self._runs[run_id]
            if policy.app_hashes is None:
                return f"{REFUSED}: the policy pins no bundle any more; start the site again to run without pins"
            check_task(policy, run_id, app_hash=digest)
            if digest != announced or fab.hash_str not in ("", digest):
                return f"{REFUSED}: it was announced as {announced}"
            if get_metadata_from_config(get_fab_config(fab.content)) != (run.fab_id, run.fab_version):
                return f"{REFUSED}: it was announced as {run.fab_id} {run.fab_version}"
        except (PolicyError, PolicyRefusal) as error:
            return f"{REFUSED}: {error}"
        except Exception as error:  # noqa: BLE001  # whatever it is, the bundle was not found good
            return f"{REFUSED}: {type(error).__name__}: {error}"
        return ""

    def _record(self, run_id: int, digest: str, outcome: str, reason: str) -> str:
        """Append to the audit log; returns an objection if it cannot be written: what is not recorded is not run."""
        entry = {"node": self._node, "run": run_id, "kind": "bundle", "app": digest, "outcome": outcome}
        try:
            append_entry(self._log, entry | ({"reason": reason[:1000]} if reason else {}))
        except AuditError as error:
            return f"{REFUSED}: {error}"
        return ""

    def _signature(self, fab: Fab) -> dict[str, str]:
        """In the form in which the SuperLink sends the signatures of an app hub."""
        now = int(time.time())
        signature = self._key.sign(create_message_to_sign(hashlib.sha256(fab.content).digest(), now))
        encoded = base64.urlsafe_b64encode(signature).decode().rstrip("=")
        return {"valid_license": "site policy", KEY_ID: json.dumps({"signed_at": now, "signature": encoded})}


@contextmanager
def guarding(guard: BundleGuard) -> Iterator[None]:
    """Put a guard into Flower's SuperNode for the time being.

    Raises:
        GuardError: this Flower version has no such place.
    """
    connect = getattr(supernode_internal, HOOK, None)
    start = getattr(supernode_internal, "start_client_internal", None)
    if not callable(connect) or getattr(start, "__globals__", None) is not vars(supernode_internal):
        raise GuardError(
            "this version of Flower fetches app bundles in another way, so that none could be checked: install the "
            "flwr version that fedskew is tested with, or remove app-hashes from the policy"
        )
    setattr(supernode_internal, HOOK, guard.wrap(connect))
    try:
        yield
    finally:
        setattr(supernode_internal, HOOK, connect)


def run_site(arguments: Sequence[str]) -> None:
    """Run `flower-supernode` with these arguments, guarded if the policy in its `--node-config` pins bundles.

    Raises:
        GuardError, PolicyError: the SuperNode must not start.
        SystemExit: it ended; with 0 only if a signal asked for it.
    """
    node, trusted = _read_arguments(arguments)
    with ExitStack() as stack:
        if not node.get("data-dir"):
            raise GuardError("--node-config names no data-dir: this site has no data; add data-dir='/absolute/path'")
        words = with_signing_key(arguments, node)
        policy = Path(str(node["policy"])).expanduser() if node.get("policy") else None
        pins = load_policy(policy).app_hashes if policy else None
        if policy is None or pins is None:
            where = f"{policy} names no app-hashes" if policy else "--node-config names no policy"
            print(f"fedskew site: {where}: this site runs whatever app the coordinator sends", flush=True)
        else:
            if trusted:
                raise GuardError("--trusted-entities cannot be given: the policy's app-hashes take its place")
            print(f"fedskew site: {policy} pins {len(pins)} app bundle(s)", flush=True)
            guard = BundleGuard(policy, audit_path(node), site_name(node))
            words += ["--trusted-entities", _prepare_home(stack, guard)]
            stack.enter_context(guarding(guard))
        _flower_supernode(words)


def with_signing_key(arguments: Sequence[str], node: Mapping[str, Any]) -> list[str]:
    """The arguments with `signing-key` in the node configuration: the key that the SuperNode authenticates with.

    So the app on this site signs its answers, and the coordinator verifies them with the key it has registered.

    Raises:
        GuardError: the path cannot be written into Flower's node configuration.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(KEY_OPTION)
    parser.add_argument("--node-config", default="")
    known, words = parser.parse_known_args(list(arguments))
    key = known.auth_supernode_private_key
    if not key or node.get(SIGNING_KEY):
        return list(arguments)
    path = str(Path(key).expanduser().resolve())
    if known.node_config.endswith(".toml"):
        raise GuardError(f"--node-config is a file, so add to it: {SIGNING_KEY} = {path!r}")
    if "'" in path:
        raise GuardError(f"the path of {KEY_OPTION} holds a quote, which Flower's node configuration cannot: {path}")
    config = f"{known.node_config} {SIGNING_KEY}='{path}'".strip()
    return [*words, KEY_OPTION, key, "--node-config", config]


def _read_arguments(arguments: Sequence[str]) -> tuple[Mapping[str, Any], str | None]:
    """The node configuration and `--trusted-entities`, read as Flower's own parser reads them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--node-config", default="")
    parser.add_argument("--trusted-entities")
    known = parser.parse_known_args(list(arguments))[0]
    return parse_config_args([known.node_config] if known.node_config else None), known.trusted_entities


def _prepare_home(stack: ExitStack, guard: BundleGuard) -> str:
    """A fresh Flower home (Flower trusts an app folder it finds in an old one), and in it the trusted key's file."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedskew-site-")))
    os.environ["FLWR_HOME"] = str(folder)
    path = folder / "trusted-entities.yaml"
    path.write_text(yaml.safe_dump(guard.trusted_entities()), encoding="utf-8")
    return str(path)


def _flower_supernode(arguments: Sequence[str]) -> NoReturn:
    from fedskew.flower import flower_supernode  # noqa: PLC0415  # after FLWR_HOME is set
    from fedskew.site.contact import run_in_contact  # noqa: PLC0415  # likewise

    sys.argv = ["flower-supernode", *arguments]
    run_in_contact(flower_supernode)


def main() -> None:
    """`python -m fedskew.site.guard`: the arguments are those of `flower-supernode`."""
    try:
        run_site(sys.argv[1:])
    except (GuardError, PolicyError, FlowerError) as error:
        sys.exit(f"fedskew site: {error}")


if __name__ == "__main__":
    main()
