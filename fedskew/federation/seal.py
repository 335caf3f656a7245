"""What shows that an answer is that of the node that was asked: a nonce of its task, and a signature by its own key.

The SuperLink of Flower 1.41 lets a registered node push a reply that names another as its source (docs/upstream.md). A
nonce that only the node asked has seen makes such a reply worthless, and the id of the message, which it would have to
name, unguessable. A signature holds even against whoever has seen the nonce: the node signs with the private key that
its SuperNode authenticates with, and the server verifies with the public key that this node was registered with.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from fedskew.errors import FedskewError
from fedskew.federation.checks import BadReply
from fedskew.federation.messages import CONFIG, METRICS, REPORT
from fedskew.federation.weights import arrays_sha256

NONCE, SIGNATURE = "nonce", "signature"
SIGNING_KEY = "signing-key"  # of a node's configuration: path of its private key (ECDSA, OpenSSH)
PURPOSE = "fedskew answer 1"  # signed too, so that a signature made for something else is none of an answer

Sign = Callable[[bytes], bytes]


class SealError(FedskewError, ValueError):
    """A node that cannot sign its answers as it is told to; names the file and the remedy."""


def with_nonce(content: RecordDict, nonce: str) -> RecordDict:
    """The content of a task for one node. Its arrays are shared with the tasks of the others."""
    records = dict(content)
    records[CONFIG] = ConfigRecord(dict(content.config_records.get(CONFIG, {})) | {NONCE: nonce})
    return RecordDict(records)


def new_nonce() -> str:
    """128 bits that nobody can guess."""
    return secrets.token_hex(16)


def load_signer(node_config: Mapping[str, Any]) -> Sign | None:
    """How this node signs; None where its configuration names no key.

    Raises:
        SealError: the key cannot be read, or is none that Flower knows.
    """
    path = str(node_config.get(SIGNING_KEY, ""))
    if not path:
        return None
    # only where a key is named: a simulated node needs neither
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key  # noqa: PLC0415

    from fedskew.flower import sign_message  # noqa: PLC0415

    try:
        key = load_ssh_private_key(Path(path).expanduser().read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise SealError(
            f"{SIGNING_KEY} {path} cannot be read ({error}); name the file that the site gives to "
            "--auth-supernode-private-key, or leave it out"
        ) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise SealError(f"{SIGNING_KEY} {path} is no ECDSA key; name the file of --auth-supernode-private-key")
    return lambda text: sign_message(key, text)


def seal(reply: Message, task: Message, round_number: int, sign: Sign | None) -> Message:
    """Put the nonce of the task into a reply, and the node's signature where it has a key. Last of all: it signs all.

    A reply that is an error has no content to bear them; the server believes it no more than that there is no answer.
    """
    nonce = task.content.config_records.get(CONFIG, ConfigRecord()).get(NONCE, "")
    if reply.has_error():
        return reply
    report = dict(reply.content.config_records.get(REPORT, {})) | {NONCE: str(nonce)}
    if sign is not None:
        signed = statement(reply.content, run_id=task.metadata.run_id, kind=task.metadata.message_type,
                           round_number=round_number, nonce=str(nonce))  # fmt: skip
        report[SIGNATURE] = sign(signed)
    reply.content[REPORT] = ConfigRecord(report)
    return reply


def statement(content: RecordDict, *, run_id: int, kind: str, round_number: int, nonce: str) -> bytes:
    """What is signed: run, kind of task, round, nonce, and hashes of all that the answer holds."""
    report = {name: value for name, value in content.config_records.get(REPORT, {}).items()
              if name not in (NONCE, SIGNATURE)}  # fmt: skip
    said = {"metrics": dict(content.metric_records.get(METRICS, {})), "report": report}
    words = json.dumps(said, sort_keys=True, default=lambda value: value.hex())
    arrays = {name: arrays_sha256(record) for name, record in content.array_records.items()}
    return json.dumps(
        {"for": PURPOSE, "run": run_id, "kind": kind, "round": round_number, "nonce": nonce, "arrays": arrays,
         "words": hashlib.sha256(words.encode()).hexdigest()},
        sort_keys=True,
    ).encode()  # fmt: skip


def check_seal(
    reply: Message, *, nonce: str, run_id: int, kind: str, round_number: int, public_key: bytes, required: bool
) -> None:
    """Raise `BadReply` unless an answer with content bears the nonce of its task and, where it must, a valid signature.

    Args:
        public_key: that the node was registered with, as PEM; empty if unknown (simulated nodes).
        required: a signature must be there. One that is there is verified in any case, if the key is known.
    """
    report = reply.content.config_records.get(REPORT, ConfigRecord())
    if not hmac.compare_digest(str(report.get(NONCE, "")).encode(errors="backslashreplace"), nonce.encode()):
        raise BadReply("its answer does not bear the nonce of its task: somebody else sent it in its name")
    signature = report.get(SIGNATURE)
    if signature is None or not public_key:
        if required:
            why = "is not signed" if signature is None else "is signed, but the node was registered without a key"
            raise BadReply(
                f"its answer {why}, and federation.require-signatures asks for it; the site should run `fedskew site`, "
                f"or name its key in the node configuration: {SIGNING_KEY}='/absolute/path/node.key'"
            )
        return
    from fedskew.flower import bytes_to_public_key, verify_signature  # noqa: PLC0415

    try:
        said = statement(reply.content, run_id=run_id, kind=kind, round_number=round_number, nonce=nonce)
        good = isinstance(signature, bytes) and verify_signature(bytes_to_public_key(public_key), said, signature)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadReply(f"its signature cannot be verified: {error}") from None
    if not good:
        raise BadReply("its signature is not that of the key which the node was registered with")
