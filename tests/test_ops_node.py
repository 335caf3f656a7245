"""Node keys and registration, against a server that answers as told and against a real SuperLink."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import flwr.supercore.control
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from deployment.processes import free_port
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from tls_server import Pki, only, real_superlink, serving, statuses

from fedskew.ops.check_network import Endpoint, check_superlink
from fedskew.ops.check_node import check_node_key, check_nodes, check_registered
from fedskew.ops.credentials import (
    node_key_pair,
)
from fedskew.ops.doctor import Data, Server, diagnose_coordinator, diagnose_site
from fedskew.ops.findings import FAIL, OK, WARN, exit_code


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


@pytest.fixture(scope="module")
def superlink(tmp_path_factory):
    with real_superlink(tmp_path_factory.mktemp("superlink")) as found:
        yield found


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "node.key"
    path.write_bytes(node_key_pair("site-a")[0])
    path.chmod(0o600)
    return path


needs_ssh_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")


@needs_ssh_keygen
def test_a_good_key_shows_the_fingerprint_that_ssh_keygen_shows(key_file):
    found = only(check_node_key(key_file), "node key")
    assert found.status == OK
    shown = subprocess.run(["ssh-keygen", "-lf", str(key_file)], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] in found.message


def test_faulty_keys(key_file, tmp_path):
    key = ec.generate_private_key(ec.SECP384R1())
    ssh, public = PrivateFormat.OpenSSH, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    faulty = {
        "is a public key": public,
        "in another PEM form": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "is a Ed25519 key": ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, ssh, NoEncryption()),
        "is no private key": b"hello",
    }
    for message, content in faulty.items():
        key_file.write_bytes(content)
        found = only(check_node_key(key_file), "node key")
        assert message in found.message
        assert found.remedy
    assert "ssh-keygen -t ecdsa" in only(check_node_key(tmp_path / "absent"), "node key").remedy


@needs_ssh_keygen
def test_a_key_with_a_passphrase(key_file):
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key_file)], check=True, capture_output=True)
    found = only(check_node_key(key_file), "node key")
    assert "protected by a passphrase" in found.message
    assert "ssh-keygen -p -N ''" in found.remedy


@needs_ssh_keygen
def test_a_key_that_ssh_keygen_made(tmp_path):
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(tmp_path / "own.key")]
    subprocess.run(words, check=True)
    assert only(check_node_key(tmp_path / "own.key"), "node key").status == OK


def test_a_key_that_others_may_read(key_file):
    key_file.chmod(0o640)
    found = only(check_node_key(key_file), "node key")
    assert "mode 0640" in found.message
    assert found.remedy == f"chmod 600 {key_file}"


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            412,
            b'{"code":2004,"detail":"Failed."}',
            "it is not registered, or a SuperNode elsewhere",
        ),
        (401, b'{"detail":"Invalid SuperNode authentication"}', "does not accept this site's signature"),
        (403, b"<html>", "fleet routes are not reachable here: status 403"),
    ],
)
def test_registration_that_is_refused(pki, key_file, status, body, message):
    with serving(pki.server(), posts={"/v1/fleet/activate-node": (status, body)}) as server:
        (found,) = check_registered(Endpoint("127.0.0.1", server.server_port, pki.roots), key_file)
    assert found.status == FAIL
    assert message in found.message


def test_a_registered_key_is_let_in_and_out_again(pki, key_file):
    posts = {
        "/v1/fleet/activate-node": (200, ActivateNodeResponse(node_id=42).SerializeToString()),
        "/v1/fleet/deactivate-node": (200, b""),
    }
    with serving(pki.server(), posts=posts) as server:
        (found,) = check_registered(Endpoint("127.0.0.1", server.server_port, pki.roots), key_file)
    assert (found.status, found.message) == (OK, "the SuperLink knows this key: node 42")
    assert server.asked == list(posts)


SUPERNODE = """
import sys, http.server
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2]))
        self.end_headers()
        self.wfile.write(sys.argv[3].encode())
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1].partition("=")[2])), Answer)
print("up", flush=True)
server.serve_forever()
"""


@pytest.mark.parametrize(
    ("status", "body", "judged", "message"),
    [
        (200, '{"seconds-since-contact": 2.6}', OK, "the coordinator answered the SuperNode of process {pid} 3 s ago"),
        (503, '{"seconds-since-contact": 312.0}', FAIL, "last answered the SuperNode of process {pid} 312 s ago"),
        (503, '{"seconds-since-contact": null}', FAIL, "process {pid} was never in contact"),
        (200, "", WARN, "is plain flower-supernode"),
        (200, "<html>", FAIL, "does not answer on port {port}"),
    ],
)
def test_a_running_supernode_is_not_disturbed_but_asked_for_its_contact(pki, key_file, status, body, judged, message):
    port = free_port()
    words = [sys.executable, "-c", SUPERNODE, "flower-supernode", str(status), body]
    words += ["--auth-supernode-private-key", key_file.name, f"--port={port}"]
    with subprocess.Popen(words, cwd=key_file.parent, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        asked, contact = check_registered(Endpoint("127.0.0.1", 1, pki.roots), key_file)
        process.kill()
    assert (asked.subject, asked.status) == ("registration", OK)
    assert f"process {process.pid}" in asked.message
    assert (contact.subject, contact.status) == ("contact", judged)
    assert message.format(pid=process.pid, port=port) in contact.message


def test_a_real_superlink_tells_registered_from_unknown_keys(superlink):
    endpoint, pki = superlink
    assert statuses(check_superlink(endpoint, clock=True, public=False))["SuperLink"] == OK
    assert only(check_superlink(endpoint, clock=True, public=True), "control routes").status == FAIL
    for _ in range(2):  # it lets go of the key each time
        assert only(check_registered(endpoint, pki / "site-a" / "node.key"), "registration").status == OK
    assert only(check_registered(endpoint, pki / "site-b" / "node.key"), "registration").status == FAIL


@pytest.mark.parametrize(("age", "status", "said"), [
    (334, OK, "SHA256:"), (336, WARN, "is due to be replaced in 28 days"),
    (367, WARN, "was due to be replaced 3 days ago"),
])  # fmt: skip
def test_a_key_has_an_end(key_file, age, status, said):
    made = time.time() - age * 86400 - 3600
    os.utime(key_file, (made, made))
    found = only(check_node_key(key_file), "node key")
    assert found.status == status
    assert said in found.message
    assert exit_code([found]) == 0, "it still opens"


def test_what_the_coordinator_knows_of_the_age_of_keys(monkeypatch):
    public = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())

    def node(name, days):
        since = (datetime.now(UTC) - timedelta(days=days, hours=1)).isoformat()
        return NodeInfo(node_id=days, name=name, status="online", public_key=public, registered_at=since,
                        last_activated_at=since)  # fmt: skip

    class Client:
        from_server_address = classmethod(lambda cls, *_: contextlib.nullcontext(cls()))

        def ListNodes(self, _):
            return ListNodesResponse(nodes_info=[node("site-a", 3), node("site-b", 350), node("site-c", 1),
                                                 node("site-c", 2)])  # fmt: skip

    monkeypatch.setattr(flwr.supercore.control, "ControlHttpClient", Client)
    found = check_nodes(Endpoint("127.0.0.1", 1, None))
    late = [finding.message for finding in found if finding.status == WARN]
    assert len(late) == 1
    assert "site-b has had its key" in late[0]
    assert "is due to be replaced in 14 days" in late[0]
    (twice,) = [finding.message for finding in found if finding.status == FAIL]
    assert "site-c is registered with 2 keys" in twice


def test_a_key_is_replaced_and_the_old_one_opens_nothing(tmp_path):
    """The steps of docs/deployment.md with a real SuperLink."""
    with real_superlink(tmp_path) as (endpoint, pki):
        old, new = pki / "site-a" / "node.key", pki / "site-a" / "new.key"
        private, public = node_key_pair("site-a")
        new.write_bytes(private)
        new.chmod(0o600)
        (pki / "new.pub").write_bytes(public)
        connection = {"PATH": os.environ["PATH"], "FLWR_HOME": str(tmp_path / "flwr")}
        (tmp_path / "flwr").mkdir()
        (tmp_path / "flwr" / "config.toml").write_text(
            f'[superlink.hospital]\naddress = "{endpoint}"\nroot-certificates = "{endpoint.roots}"\n'
        )

        def flwr(*words):
            command = [Path(sys.executable).parent / "flwr", "supernode", *map(str, words)]
            return subprocess.run(command, env=os.environ | connection, capture_output=True, text=True, check=False)

        def is_let_in(key):
            return only(check_registered(endpoint, key), "registration").status == OK

        assert (is_let_in(old), is_let_in(new)) == (True, False)
        (node_id,) = [
            node["node-id"] for node in json.loads(flwr("list", "hospital", "--format", "json").stdout)["nodes"]
        ]
        assert flwr("unregister", node_id, "hospital").returncode == 0
        assert not is_let_in(old), "revoked"
        assert flwr("register", pki / "new.pub", "hospital", "--name", "site-a").returncode == 0
        assert (is_let_in(old), is_let_in(new)) == (False, True)
        again = flwr("register", pki / "coordinator" / "site-a.pub", "hospital", "--name", "site-a")
        assert "already" in (again.stdout + again.stderr), "a key that was revoked never comes back"
        assert not is_let_in(old)


def test_the_coordinator_sees_its_sites(superlink):
    endpoint, pki = superlink
    (found,) = check_nodes(endpoint)
    assert (found.subject, found.status) == ("site", WARN)
    assert "site-a is registered with key SHA256:" in found.message
    shown = only(check_node_key(pki / "site-a" / "node.key"), "node key").message
    assert found.message.split("SHA256:")[1][:7] in shown, "both sides can compare the key"


def test_a_coordinator_from_end_to_end(superlink, monkeypatch):
    endpoint, pki = superlink
    server = Server(pki / "coordinator" / "server.pem", hosts=("localhost",))
    found = diagnose_coordinator(endpoint, endpoint, server, Data(), "")
    assert only(found, "server certificate").status == OK
    assert only(found, "site").status == WARN
    assert only(found, "public control routes").status == FAIL
    assert "public TCP" not in statuses(found) or only(found, "public TCP").status == OK


def test_a_site_from_end_to_end(pki, key_file, generated, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    (tmp_path / "policy.yaml").write_text("app-hashes: ['" + 64 * "a" + "']")
    (tmp_path / "policy.yaml").chmod(0o644)
    names = {"policy": "policy.yaml", "audit-log": "audit.jsonl"}
    config = {"data-dir": str(generated)} | {key: str(tmp_path / name) for key, name in names.items()}
    posts = {"/v1/fleet/activate-node": (200, b""), "/v1/fleet/deactivate-node": (200, b"")}
    with serving(pki.server(), posts=posts) as server:
        endpoint = Endpoint("127.0.0.1", server.server_port, pki.roots)
        found = diagnose_site(endpoint, key_file, Data(generated), config)
    machine = {"CUDA", "memory", "cache disk", "audit disk"}
    assert {finding.subject for finding in found if finding.status != OK} <= machine
    assert {"python", "TLS", "clock", "registration", "classes", "policy", "audit log"} <= set(statuses(found))
