"""A site's node key, and whether the SuperLink knows it; the coordinator's list of sites."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
)

from fedskew.ops.check_network import LOOPBACK, TIMEOUT, Endpoint
from fedskew.ops.check_tls import EXPIRES_SOON, private_mode
from fedskew.ops.findings import Finding, fail, ok, warn

if TYPE_CHECKING:
    from fedskew.flower import NodeInfo

KEYGEN = "make one: ssh-keygen -t ecdsa -b 384 -N '' -f node.key"
KEY_OPTION = "--auth-supernode-private-key"
KEY_LIFE = timedelta(days=365)  # then a node key is to be replaced; Flower's keys have no end of their own
SITE_PORT = 9094  # of a SuperNode's own API, unless --port says otherwise
NOT_ACTIVATED = 2004  # flwr.supercore.error.ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


@dataclass(frozen=True)
class RunningSite:
    """A SuperNode on this machine, and where its own API listens."""

    pid: int
    host: str
    port: int


def check_node_key(path: Path) -> list[Finding]:
    """The file of `--auth-supernode-private-key`: there, private, and of the kind that Flower reads."""
    subject = "node key"
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = KEYGEN if isinstance(error, FileNotFoundError) else "let the account that runs the SuperNode read it"
        return [fail(subject, f"{path} cannot be read: {error.strerror}", remedy)]
    found = private_mode(path, subject)
    problem = _key_problem(content)
    if problem:
        return [*found, fail(subject, f"{path} {problem[0]}", problem[1])]
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    found += key_age(made, subject, f"{path} was written on {made:%Y-%m-%d}")
    return found or [
        ok(subject, f"{path}: {fingerprint(_load(content))} (ssh-keygen -lf shows the same of the .pub file)")
    ]


def check_registered(endpoint: Endpoint, key_file: Path) -> list[Finding]:
    """Ask the SuperLink to let this key in, and out again at once: there is no other way for a site to find out.

    Not done while a SuperNode runs here with this key, which would be let in only once: that one is asked instead.
    """
    subject = "registration"
    running = _running_supernode(key_file)
    if running:
        text = f"not asked: a SuperNode runs here with this key (process {running.pid}), and a key is let in only once"
        return [ok(subject, text), *check_contact(running)]
    import httpx

    try:
        node = _let_in_and_out(endpoint, _load(key_file.read_bytes()))
    except httpx.HTTPStatusError as error:
        return [_refused(error.response.status_code, error.response.text)]
    except httpx.HTTPError as error:
        return [fail(subject, f"cannot be asked: {type(error).__name__}: {error}", "see the lines above")]
    return [ok(subject, f"the SuperLink knows this key: node {node}")]


def check_contact(site: RunningSite) -> list[Finding]:
    """When the coordinator last answered a SuperNode that runs here, by what `fedskew site` says on `/health`."""
    import httpx

    from fedskew.site.contact import HEALTH_KEY

    subject, name = "contact", f"the SuperNode of process {site.pid}"
    log = "its log says why (journalctl -u fedskew-site, or docker compose logs site)"
    try:
        answer = httpx.get(f"http://{site.host}:{site.port}/health", timeout=TIMEOUT, trust_env=False)
        said = answer.json() if answer.content else {}
    except (httpx.HTTPError, ValueError) as error:
        return [fail(subject, f"{name} does not answer on port {site.port}: {type(error).__name__}: {error}", log)]
    if HEALTH_KEY not in said:
        return [warn(subject, f"{name} is plain flower-supernode, which does not tell", "start it with fedskew site")]
    seconds = said[HEALTH_KEY]
    if seconds is None:
        return [fail(subject, f"{name} was never in contact with the coordinator", log)]
    if answer.status_code != httpx.codes.OK:
        return [fail(subject, f"the coordinator last answered {name} {seconds:.0f} s ago", log)]
    return [ok(subject, f"the coordinator answered {name} {seconds:.0f} s ago")]


def check_nodes(endpoint: Endpoint) -> list[Finding]:
    """The coordinator's view: which sites are registered, and which are connected."""
    from fedskew.flower import ControlHttpClient, ListNodesRequest

    roots = str(endpoint.roots) if endpoint.roots else None
    with ControlHttpClient.from_server_address(str(endpoint), endpoint.insecure, roots, []) as client:
        nodes = [node for node in client.ListNodes(ListNodesRequest()).nodes_info if node.status != "unregistered"]
    if not nodes:
        remedy = "flwr supernode register site-a.pub CONNECTION --name site-a, with the .pub file that the site sends"
        return [warn("sites", "none is registered", remedy)]
    found = []
    for node in sorted(nodes, key=lambda node: node.name):
        name, key = node.name or f"node {node.node_id}", _short_key(node.public_key)
        if node.status == "online":
            found.append(ok("site", f"{name} is connected since {node.last_activated_at[:19]} UTC, key {key}"))
        else:
            last = f"last seen {node.last_deactivated_at[:19]} UTC" if node.last_deactivated_at else "never connected"
            remedy = f"at {name}: fedskew doctor site; then start its SuperNode"
            found.append(warn("site", f"{name} is registered with key {key}, but offline ({last})", remedy))
        since = datetime.fromisoformat(node.registered_at)
        found += key_age(since, "site", f"{name} has had its key {key} since {since:%Y-%m-%d}")
    return found + _twice_registered(nodes)


def key_age(since: datetime, subject: str, said: str) -> list[Finding]:
    """A finding if a node key is at the end of `KEY_LIFE`, or soon will be.

    Args:
        since: when the key was made or registered, with its time zone.
        said: whose key it is and since when, in words.
    """
    left = (since + KEY_LIFE - datetime.now(UTC)).days
    if left >= EXPIRES_SOON:
        return []
    due = f"is due to be replaced in {left} days" if left >= 0 else f"was due to be replaced {-left} days ago"
    remedy = "replace it between two runs: docs/deployment.md, “Credentials have an end”"
    return [warn(subject, f"{said} and {due}; keys are meant to last {KEY_LIFE.days} days", remedy)]


def _twice_registered(nodes: Sequence[NodeInfo]) -> list[Finding]:
    """Flower lets two keys be registered under one name: one that was replaced and not unregistered still opens."""
    names = [node.name for node in nodes if node.name]
    remedy = "flwr supernode list CONNECTION; flwr supernode unregister NODE-ID CONNECTION for the old key"
    return [fail("site", f"{name} is registered with {names.count(name)} keys; each of them is let in", remedy)
            for name in dict.fromkeys(names) if names.count(name) > 1]  # fmt: skip


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    """SHA-256 of the public key as `ssh-keygen -l` prints it."""
    return _openssh_fingerprint(key.public_key())


def _key_problem(content: bytes) -> tuple[str, str] | None:
    """What is wrong with a key file, and what to do; None if Flower reads it."""
    if content.startswith((b"ecdsa-", b"ssh-")):
        return "is a public key", "name the private one, without .pub; the .pub file goes to the coordinator"
    try:
        key = _load(content)
    except TypeError:
        return (
            "is protected by a passphrase, which a service cannot type",
            "ssh-keygen -p -N '' -f on a copy, or " + KEYGEN,
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        if b"BEGIN" in content and b"OPENSSH" not in content:
            return "is a key in another PEM form than OpenSSH's", "convert a copy: ssh-keygen -p -N '' -f FILE"
        return f"is no private key ({error})", KEYGEN
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return f"is a {type(key).__name__.removesuffix('PrivateKey')} key; Flower takes ECDSA on a NIST curve", KEYGEN
    return None


def _load(content: bytes) -> ec.EllipticCurvePrivateKey:
    return load_ssh_private_key(content, None)  # type: ignore[return-value]  # the kind is checked by _key_problem


def _let_in_and_out(endpoint: Endpoint, key: ec.EllipticCurvePrivateKey) -> int:
    from fedskew.flower import (
        HEARTBEAT_MIN_INTERVAL,
        ActivateNodeRequest,
        DeactivateNodeRequest,
        FleetHttpClient,
        NodeAuthHttpInterceptor,
        public_key_to_bytes,
    )

    public = key.public_key()
    roots = str(endpoint.roots) if endpoint.roots else None
    signing = [NodeAuthHttpInterceptor(key, public)]
    with FleetHttpClient.from_server_address(str(endpoint), endpoint.insecure, roots, signing) as client:
        # the shortest interval: should the line be cut now, the SuperLink forgets this within seconds
        request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=HEARTBEAT_MIN_INTERVAL)
        node = client.ActivateNode(request).node_id
        client.DeactivateNode(DeactivateNodeRequest(node_id=node))
    return node


def _refused(status: int, body: str) -> Finding:
    subject = "registration"
    if f'"code":{NOT_ACTIVATED}' in body.replace(" ", ""):
        return fail(
            subject,
            "the SuperLink does not let this key in: it is not registered, or a SuperNode elsewhere uses it now or did "
            "until a minute ago (Flower gives the same answer)",
            "send the .pub file to the coordinator; `fedskew doctor coordinator` there tells the two cases apart",
        )
    if status == 401:
        remedy = "check this machine's clock (line `clock`), and that the proxy passes the headers flwr-*"
        return fail(subject, "the SuperLink does not accept this site's signature", remedy)
    remedy = "the coordinator's proxy must let sites reach /v1/fleet/"
    return fail(subject, f"the fleet routes are not reachable here: status {status}", remedy)


def _running_supernode(key_file: Path) -> RunningSite | None:
    """The SuperNode on this machine that was started with this key."""
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command = process.info["cmdline"] or []
        if any("supernode" in word or word == "site" for word in command[:4]) and KEY_OPTION in command:
            given = Path(process.info["cwd"] or "/", _option(command, KEY_OPTION, ""))
            if given.resolve() == key_file.resolve():
                host, port = _option(command, "--host", LOOPBACK[0]), _option(command, "--port", str(SITE_PORT))
                return RunningSite(process.pid, LOOPBACK[0] if host == "0.0.0.0" else host, int(port))
    return None


def _option(command: list[str], name: str, default: str) -> str:
    """The value of the last `--name VALUE` or `--name=VALUE` in a command."""
    found = default
    for word, following in zip(command, [*command[1:], ""], strict=True):
        found = following if word == name else word.partition("=")[2] if word.startswith(f"{name}=") else found
    return found


def _short_key(pem: bytes) -> str:
    return _openssh_fingerprint(load_pem_public_key(pem))[:14] + "…"  # type: ignore[arg-type]


def _openssh_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    blob = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1]
    digest = hashlib.sha256(base64.b64decode(blob)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"
