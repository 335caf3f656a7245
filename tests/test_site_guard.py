"""A site that pins a bundle's hash runs that bundle and no other: judged by Flower's own SuperNode code."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import contextmanager
from dataclasses import replace

import flwr.supernode.start_client_internal as internal
import pytest
import yaml
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.cli.build import build_fab_from_disk, build_fab_from_files
from flwr.common.config import parse_config_args
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from fedskew.cli.flower import app_directory
from fedskew.ops.bundle import BundleError, bundle_hash
from fedskew.site import guard as guard_module
from fedskew.site.audit import verify_audit
from fedskew.site.guard import BundleGuard, GuardError, guarding, run_site

RUN = 4711
FILES = {
    "pyproject.toml": (
        b'[project]\nname = "app"\nversion = "1.0.0"\nlicense = {file = "LICENSE"}\ndependencies = ["flwr>=1.41.0"]\n'
        b'[tool.flwr.app]\npublisher = "pub"\nfab-format-version = 1\nflwr-version-target = "1.41.0"\n'
        b'[tool.flwr.app.components]\nserverapp = "a:app"\nclientapp = "a:app"\n'
    ),
    "LICENSE": b"free",
    "a.py": b"app = None\n",
}


def _bundle(**changed: bytes) -> bytes:
    return build_fab_from_files(FILES | {name.replace("_", "."): text for name, text in changed.items()})[0]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A SuperNode's inner loop with a SuperLink that can be told what to send."""
    return _Site(tmp_path, monkeypatch)


class _Site:
    def __init__(self, folder, monkeypatch):
        self.policy, self.log = folder / "policy.yaml", folder / "audit.jsonl"
        self.guard = BundleGuard(self.policy, self.log, "site-a")
        self.store = ObjectStoreFactory()
        self.state = NodeStateFactory(objectstore_factory=self.store).state()
        self.state.set_node_id(7)
        self.sent: Fab | None = None
        self.run = Run.create_empty(RUN)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1

        @contextmanager
        def superlink(*_, **__):
            yield (
                7,
                self._receive,
                None,
                lambda _: self.run,
                lambda *_: self.sent,
                lambda *_: b"",
                None,
                lambda *_: None,
            )

        monkeypatch.setattr(internal, guard_module.HOOK, superlink)

    def pin(self, *hashes: str, **more) -> None:
        self.policy.write_text(yaml.safe_dump({"app-hashes": list(hashes)} | more))

    def fetch(self, content: bytes, announced: str = "", verifications=None, trusted=None) -> bool:
        """Let Flower pull a message of a run with this bundle; whether the SuperNode kept the bundle to run it."""
        fab_hash = announced or _sha256(content)
        self.sent = Fab(fab_hash, content, verifications or {})
        self.run = replace(self.run, fab_hash=fab_hash, fab_id="pub/app", fab_version="1.0.0")
        with guarding(self.guard), internal._init_connection(server_address="127.0.0.1:9", insecure=True) as connection:
            node, receive, _, get_run, get_fab, pull, _, confirm = connection
            assert node == 7
            internal._pull_and_store_message(
                self.state, self.store.store(), {}, receive, get_run, get_fab, pull, confirm,
                self.guard.trusted_entities() if trusted is None else trusted,
            )  # fmt: skip
        return self.state.get_run(RUN) is not None

    def _receive(self):
        message = Message(RecordDict({"config": ConfigRecord({"a": 1})}), 7, "train")
        message.metadata.__dict__["_run_id"] = RUN
        message.metadata.__dict__["_message_id"] = message.object_id
        return message, get_object_tree(message)

    def error(self) -> int:
        (reply,) = self.state.get_messages_legacy(is_reply=True)
        return reply.error.code

    def entries(self) -> list[dict]:
        verify_audit(self.log)
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def test_a_pinned_bundle_is_kept_and_recorded(site):
    content = _bundle()
    site.pin(_sha256(content), "0" * 64)
    assert site.fetch(content)
    assert site.state.get_fab(_sha256(content)).content == content
    (entry,) = site.entries()
    assert (entry["kind"], entry["outcome"], entry["app"], entry["run"]) == ("bundle", "allowed", _sha256(content), RUN)


@pytest.mark.parametrize(
    ("sent", "announced"),
    [
        (_bundle(a_py=b"app = None\nopen('/tmp/stolen', 'w')\n"), ""),
        (_bundle(a_py=b"app = None\nopen('/tmp/stolen', 'w')\n"), _sha256(_bundle())),
        (b"no bundle at all", ""),
    ],
    ids=["tampered", "tampered-under-the-pinned-hash", "garbage"],
)
def test_a_bundle_that_is_not_pinned_is_refused_before_it_is_stored(site, sent, announced):
    site.pin(_sha256(_bundle()))
    assert not site.fetch(sent, announced)
    assert site.error() == 7, "the server is told that the bundle could not be verified"
    assert site.state.get_fab(site.sent.hash_str) is None
    (entry,) = site.entries()
    assert entry["outcome"] == "refused"
    assert "is not among its app-hashes" in entry["reason"]


def test_a_signature_that_the_superlink_sends_does_not_help(site):
    good, bad = _bundle(), _bundle(a_py=b"app = 1\n")
    site.pin(_sha256(good))
    stolen = site.guard._signature(Fab(_sha256(good), good, {}))
    assert not site.fetch(bad, verifications=stolen)
    assert site.error() == 7


def test_a_pinned_bundle_under_another_apps_name_is_refused(site):
    content = _bundle()
    site.pin(_sha256(content))
    site.run = replace(site.run, fab_id="pub/app")
    other = FILES["pyproject.toml"].replace(b'name = "app"', b'name = "other"')
    renamed = build_fab_from_files(FILES | {"pyproject.toml": other})[0]
    site.pin(_sha256(renamed))
    assert not site.fetch(renamed)
    assert "announced as pub/app 1.0.0" in site.entries()[0]["reason"]


def test_a_run_that_the_policy_does_not_list_fetches_nothing(site):
    content = _bundle()
    site.pin(_sha256(content), **{"allowed-runs": [1]})
    assert not site.fetch(content)
    assert "allowed-runs" in site.entries()[0]["reason"]


@pytest.mark.parametrize("text", ["", "app-hashes: 5", "app-hashes: [", "min-examples: 3"])
def test_a_policy_that_cannot_be_read_or_lost_its_pins_allows_nothing(site, text):
    content = _bundle()
    site.policy.write_text(text)
    assert not site.fetch(content)
    assert site.error() == 7


def test_what_cannot_be_recorded_is_not_run(site):
    content = _bundle()
    site.pin(_sha256(content))
    site.log.mkdir()
    assert not site.fetch(content)


def test_pins_are_read_again_for_every_run(site):
    content = _bundle()
    site.pin("0" * 64)
    assert not site.fetch(content)
    site.pin(_sha256(content))
    assert site.fetch(content)


def test_another_flower_does_not_start_unguarded(site, monkeypatch):
    """The function that fetches bundles was renamed: no start. It is no longer called: Flower refuses every bundle."""
    monkeypatch.setattr(guard_module, "HOOK", "renamed")
    with pytest.raises(GuardError, match="another way"), guarding(site.guard):
        pass


def test_without_the_guards_signature_flower_refuses_every_bundle(site, monkeypatch):
    content = _bundle()
    site.pin(_sha256(content))
    monkeypatch.setattr(BundleGuard, "_sign_pinned", lambda _, get_fab: get_fab)  # as if it were not called
    assert not site.fetch(content)
    assert site.error() == 7


class _Started(Exception):
    """Carries the arguments that Flower's SuperNode would have been started with."""


@pytest.fixture
def started(monkeypatch):
    def start(arguments):
        raise _Started(list(arguments), getattr(internal, guard_module.HOOK))

    monkeypatch.setattr(guard_module, "_flower_supernode", start)
    monkeypatch.setenv("FLWR_HOME", "unchanged")

    def run(*arguments):
        with pytest.raises(_Started) as found:
            run_site(arguments)
        return found.value.args

    return run


def test_without_pins_it_is_plain_flower_supernode_and_says_so(started, tmp_path, capsys):
    plain = internal.http_request_response
    words = ["--superlink", "a:1", "--node-config", "data-dir='/data'"]
    assert started(*words) == (words, plain)
    assert "names no policy: this site runs whatever app" in capsys.readouterr().out
    (tmp_path / "p.yaml").write_text("min-examples: 3")
    words = ["--node-config", f"policy='{tmp_path / 'p.yaml'}' data-dir='/data'"]
    assert started(*words) == (words, plain)
    assert "names no app-hashes" in capsys.readouterr().out


@pytest.mark.parametrize("node", [[], ["--node-config", "partition-id=0 num-partitions=2"]])
def test_a_site_without_data_of_its_own_does_not_start(node):
    """It would be taken for a simulated node, which opens the paths that a server sends."""
    with pytest.raises(GuardError, match="names no data-dir"):
        run_site(["--superlink", "a:1", *node])


def test_with_pins_flower_trusts_the_guards_key_alone_and_starts_from_a_fresh_home(started, tmp_path, capsys):
    (tmp_path / "p.yaml").write_text(f"app-hashes: ['{'0' * 64}']")
    words = [f"--node-config=policy='{tmp_path / 'p.yaml'}' data-dir='/data/a'", "--superlink", "a:1"]
    arguments, hook = started(*words)
    assert arguments[:-1] == [*words, "--trusted-entities"]
    assert hook is not internal.http_request_response
    assert internal.http_request_response.__name__ == "http_request_response", "and it is put back afterwards"
    assert "pins 1 app bundle" in capsys.readouterr().out
    with pytest.raises(GuardError, match="trusted-entities"):
        run_site([*words, "--trusted-entities", "x.yaml"])


def test_the_bundle_hash_is_that_of_flwr_build_and_of_the_code_alone(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).write_bytes(text)
    first = bundle_hash(tmp_path)
    assert first == _sha256(_bundle())
    (tmp_path / "a.py").write_bytes(b"app = 1\n")
    assert bundle_hash(tmp_path) != first
    with pytest.raises(BundleError, match="no app bundle"):
        bundle_hash(tmp_path / "nothing")


def test_our_bundle_holds_code_presets_and_plugins_only():
    """Otherwise a changed test or document would change the hash that sites pin."""
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app_directory()))).namelist()
    assert {"clientapp.py", "serverapp.py", "LICENSE", "conf/demo.yaml", "fedskew/site/guard.py"} <= set(names)
    assert all(name.startswith(("fedskew/", "conf/", "plugins/", ".info/")) for name in names if "/" in name), names


def test_a_site_signs_with_the_key_that_its_supernode_authenticates_with(started):
    node = "data-dir='/data/a' name='site a'"
    arguments, _ = started("--auth-supernode-private-key", "/pki/node.key", f"--node-config={node}", "--port", "9")
    config = arguments[arguments.index("--node-config") + 1]
    assert parse_config_args([config]) == {"data-dir": "/data/a", "name": "site a", "signing-key": "/pki/node.key"}
    assert arguments[arguments.index("--auth-supernode-private-key") + 1] == "/pki/node.key"
    assert arguments[:2] == ["--port", "9"]
    assert sum("node-config" in word for word in arguments) == 1


def test_a_site_that_names_another_key_to_sign_with_keeps_it(started):
    words = ["--auth-supernode-private-key", "a.key", "--node-config", "data-dir='/data' signing-key='/b.key'"]
    assert started(*words)[0] == words


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--node-config", "node.toml"), "add to it: signing-key"),
        (("--node-config", "data-dir='/data'"), "holds a quote"),
    ],
)
def test_where_the_key_cannot_be_handed_on_the_site_does_not_start(words, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "node.toml").write_text("name = 'a'\ndata-dir = '/data'")
    key = "a.key" if "node.toml" in words else "a'b.key"
    with pytest.raises(GuardError, match=reason):
        run_site(["--auth-supernode-private-key", key, *words])
