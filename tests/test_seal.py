"""Nobody answers in another's name: nonces, sources, duplicates, strangers and signatures."""

from __future__ import annotations

import copy
import hashlib
import json

import numpy as np
import pytest
from builders import run_here, tiny_config
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedskew.apps import make_client_app
from fedskew.federation.checks import BadReply
from fedskew.federation.grids import LocalGrid
from fedskew.federation.seal import SealError, check_seal, load_signer, new_nonce, seal, statement, with_nonce

app = make_client_app()


@pytest.fixture
def run(generated, tmp_path):
    def start(grid, **overrides):
        overrides["run"] = {"output_dir": str(tmp_path / "runs")}
        folder = run_here(tiny_config(**overrides), grid=grid)
        return folder.records()

    return start


class Forging(LocalGrid):
    """Node 3 has found out the id of node 1's message and pushes an answer to it, in node 1's name, before node 1.

    The SuperLink of Flower 1.41 accepts it: it compares the source that the reply itself names. Node 1's own answer
    would then be a second one to the same message, which it refuses.
    """

    def pull_messages(self, message_ids):
        for message_id in list(message_ids):
            message = self._pending[message_id]
            if message.metadata.dst_node_id == 1 and message.metadata.message_type == "train":
                own = copy.copy(message)
                own.content = RecordDict(dict(message.content) | {"config": self.of_node_3})
                self._pending.pop(message_id)
                reply = app(own, self._context(3))
                assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (1, message_id)
                return [reply]
        return super().pull_messages(message_ids)

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.dst_node_id == 3:
                self.of_node_3 = message.content["config"]
        return super().push_messages(messages)

    def _context(self, node):
        return Context(1, node, dict(self._configs[node]), self._states[node], {})


def test_an_answer_in_anothers_name_is_set_aside_and_said_loudly(run, caplog):
    """It was: counted as node 1's, whose own answer was dropped."""
    records = run(Forging(app, 3), federation={"rounds": 1})
    ((name, reason),) = records[1]["failed"].items()
    assert name == "node 1"
    assert "does not bear the nonce of its task" in reason
    assert records[1]["clients_ok"] == 2
    assert set(records[1]["nodes"]) == {"partition-1", "partition-2"}
    (line,) = records[1]["strangers"]
    assert line.startswith("in the name of node 1: ")
    assert any(entry.levelname == "ERROR" and line in entry.getMessage() for entry in caplog.records)


class Repeating(LocalGrid):
    """Every answer comes twice; and one comes that nobody asked for."""

    def pull_messages(self, message_ids):
        (reply,) = super().pull_messages(message_ids)
        stray = copy.copy(reply)
        stray.__dict__["_metadata"] = copy.copy(reply.metadata)
        stray.metadata.__dict__["_reply_to_message_id"] = "a message of another run"
        second = copy.copy(reply)
        second.content = RecordDict({name: type(record)(dict(record)) for name, record in reply.content.items()})
        return [reply, second, stray]


def test_a_second_answer_and_one_that_nobody_asked_for_count_for_nothing(run):
    """It was: both were averaged."""
    plain = run(LocalGrid(app, 3), federation={"rounds": 1})[1]
    twice = run(Repeating(app, 3), federation={"rounds": 1})[1]
    assert (twice["clients_ok"], twice["clients_failed"]) == (3, 0)
    assert twice["loss"] == plain["loss"]
    assert twice["bytes_up"] == plain["bytes_up"]
    assert sum("a second answer" in line for line in twice["strangers"]) == 3
    assert sum("belongs to no task of this round" in line for line in twice["strangers"]) == 3
    assert plain["strangers"] == []


class Misnamed(LocalGrid):
    """Node 2's answer names node 3 as its source."""

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            if reply.metadata.src_node_id == 2:
                reply.metadata.__dict__["_src_node_id"] = 3
        return replies


def test_an_answer_that_names_another_source_than_was_asked_is_set_aside(run):
    records = run(Misnamed(app, 3), federation={"rounds": 1})
    assert list(records[1]["failed"]) == ["node 2"]
    assert "comes from node 3, which was not asked" in records[1]["failed"]["node 2"]
    assert len(records[1]["strangers"]) == 1


def test_the_id_of_a_task_cannot_be_guessed_by_whoever_knows_all_else():
    """Flower's message ids are hashes of the content and a time; tasks of one round were equal but for the node."""
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(3))}), "config": ConfigRecord({"round": 1})})
    nonces = {new_nonce() for _ in range(100)}
    assert len(nonces) == 100
    assert all(len(nonce) == 32 for nonce in nonces), "128 bits"
    ids = set()
    for nonce in nonces:
        message = Message(with_nonce(content, nonce), 1, "train")
        message.metadata.__dict__["_created_at"] = 0.0
        ids.add(message.object_id)
    assert len(ids) == 100
    assert "nonce" not in content["config"], "the shared content is left alone"


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Three nodes' key files (OpenSSH, as ssh-keygen writes them) and public keys (PEM, as Flower keeps them)."""
    folder, public = tmp_path_factory.mktemp("keys"), []
    for index in range(3):
        key = ec.generate_private_key(ec.SECP384R1())
        (folder / f"{index}.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public.append(public_key_to_bytes(key.public_key()))
    return folder, public


TERMS = {"nonce": "ab" * 16, "run_id": 1, "kind": "train", "round_number": 4}


def sealed(keys, index=0):
    """A reply with a signature by node `index`."""
    task = Message(with_nonce(RecordDict({"config": ConfigRecord({})}), TERMS["nonce"]), 1, "train")
    content = {"arrays": ArrayRecord({"w": Array(np.arange(3.0))}), "metrics": MetricRecord({"loss": 0.1, "n": 3}),
               "report": ConfigRecord({"node": "a", "notes": ["x"], "counts": [1, 2]})}  # fmt: skip
    reply = Message(RecordDict(content), reply_to=task)
    return seal(reply, task, 4, load_signer({"signing-key": str(keys[0] / f"{index}.key")}))


def test_a_signature_by_the_registered_key_is_good_also_after_its_way_through_flower(keys):
    reply = sealed(keys)
    check_seal(reply, **TERMS, public_key=keys[1][0], required=True)
    contents = {name: item.deflate() for name, item in get_all_nested_objects(reply).items()}
    arrived = inflate_object_from_contents(reply.object_id, contents)
    assert arrived is not reply
    check_seal(arrived, **TERMS, public_key=keys[1][0], required=True)


def spoil_arrays(reply):
    reply.content["arrays"] = ArrayRecord({"w": Array(np.arange(3.0) + 1)})


def spoil_metrics(reply):
    reply.content["metrics"] = MetricRecord(dict(reply.content["metrics"].items()) | {"n": 4})


def spoil_report(reply):
    reply.content["report"] = ConfigRecord(dict(reply.content["report"]) | {"counts": [2, 1]})


def spoil_signature(reply):
    reply.content["report"] = ConfigRecord(dict(reply.content["report"]) | {"signature": "text"})


def spoil_name(reply):
    reply.content["report"] = ConfigRecord(dict(reply.content["report"]) | {"node": "b"})


def spoil_record_name(reply):
    reply.content["more"] = reply.content["arrays"]
    del reply.content["arrays"]


@pytest.mark.parametrize(
    "spoil", [spoil_arrays, spoil_metrics, spoil_report, spoil_name, spoil_record_name, spoil_signature]
)
def test_what_was_changed_after_it_was_signed_is_refused(keys, spoil):
    reply = sealed(keys)
    spoil(reply)
    with pytest.raises(BadReply, match="not that of the key which the node was registered with"):
        check_seal(reply, **TERMS, public_key=keys[1][0], required=False)


@pytest.mark.parametrize("other", [{"run_id": 2}, {"kind": "evaluate"}, {"round_number": 5}])
def test_a_signature_of_another_run_round_or_kind_is_refused(keys, other):
    with pytest.raises(BadReply, match="signature"):
        check_seal(sealed(keys), **(TERMS | other), public_key=keys[1][0], required=False)


def test_a_signature_by_another_nodes_key_is_refused(keys):
    with pytest.raises(BadReply, match="registered with"):
        check_seal(sealed(keys, 1), **TERMS, public_key=keys[1][0], required=False)


def test_a_nonce_of_another_task_is_refused_whatever_the_signature(keys):
    with pytest.raises(BadReply, match="nonce"):
        check_seal(sealed(keys), **(TERMS | {"nonce": "cd" * 16}), public_key=keys[1][0], required=False)


@pytest.mark.parametrize("said", [{}, {"nonce": ""}, {"nonce": 0}, {"nonce": ["ab" * 16]}, {"nonce": "\udc80"}])
def test_an_answer_without_the_nonce_is_refused(keys, said):
    reply = sealed(keys)
    report = {name: value for name, value in reply.content["report"].items() if name not in ("nonce", "signature")}
    reply.content["report"] = ConfigRecord(report | said)
    with pytest.raises(BadReply, match="does not bear the nonce"):
        check_seal(reply, **TERMS, public_key=b"", required=False)
    del reply.content["report"]
    with pytest.raises(BadReply, match="does not bear the nonce"):
        check_seal(reply, **TERMS, public_key=b"", required=False)


def test_a_signature_of_another_task_of_the_same_round_is_refused(keys):
    """Whoever has both: the nonce is signed, not only sent along."""
    reply = sealed(keys)
    reply.content["report"] = ConfigRecord(dict(reply.content["report"]) | {"nonce": "cd" * 16})
    with pytest.raises(BadReply, match="not that of the key"):
        check_seal(reply, **(TERMS | {"nonce": "cd" * 16}), public_key=keys[1][0], required=False)


def test_what_is_signed_says_what_for_and_names_all_that_it_stands_for(keys):
    """A node's key signs its requests to the SuperLink too: none of these must pass for an answer."""
    reply = sealed(keys)
    said = json.loads(statement(reply.content, **TERMS))
    words = {"metrics": {"loss": 0.1, "n": 3}, "report": {"node": "a", "notes": ["x"], "counts": [1, 2]}}
    assert said["words"] == hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()
    assert list(said["arrays"]) == ["arrays"]
    rest = {name: value for name, value in said.items() if name not in ("words", "arrays")}
    assert rest == {"for": "fedskew answer 1", "run": 1, "kind": "train", "round": 4, "nonce": "ab" * 16}


def test_without_a_registered_key_only_a_required_signature_is_missed(keys):
    check_seal(sealed(keys), **TERMS, public_key=b"", required=False)
    with pytest.raises(BadReply, match="registered without a key"):
        check_seal(sealed(keys), **TERMS, public_key=b"", required=True)


def test_a_key_that_cannot_be_used_is_named(tmp_path):
    assert load_signer({}) is None
    with pytest.raises(SealError, match=r"signing-key .*nowhere.* cannot be read"):
        load_signer({"signing-key": str(tmp_path / "nowhere")})
    wrong = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "k").write_bytes(wrong.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    with pytest.raises(SealError, match="no ECDSA key"):
        load_signer({"signing-key": str(tmp_path / "k")})


class Registered(LocalGrid):
    """Nodes that were registered with public keys; `keys[i]` is that of partition i."""

    def __init__(self, signing, public):
        configs = {i + 1: {"partition-id": i, "num-partitions": 3} | ({"signing-key": str(key)} if key else {})
                   for i, key in enumerate(signing)}  # fmt: skip
        super().__init__(app, 3, node_configs=configs)
        self._public = public

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=self._public[node - 1]) for node in self._configs]


def test_a_run_that_asks_for_signatures_counts_those_that_are_good_and_names_the_others(run, keys):
    folder, public = keys
    grid = Registered([folder / "0.key", folder / "2.key", ""], public)  # the second signs with the third's key
    settings = {"rounds": 1, "require_signatures": True, "evaluate_clients": True, "fraction": 0.99}
    records = run(grid, federation=settings)
    assert records[1]["clients_ok"] == 1
    assert "validation-loss" in records[1]["nodes"]["partition-0"]
    reasons = sorted(records[1]["failed"].values())
    assert "is not signed" in reasons[0]
    assert "fedskew site" in reasons[0]
    assert "registered with" in reasons[1]
