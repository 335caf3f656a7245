"""Around a node's work, as a mod of its ClientApp: the site's policy before and after, a clear answer for every fault.

The client inside knows neither policy nor audit log nor key: a task reaches it as the site takes it, and its reply
leaves filtered, recorded and sealed, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict

from fedskew.config.schema import ConfigError
from fedskew.data.samples import DataError
from fedskew.federation.client import task_data
from fedskew.federation.messages import CONFIG, MessageError, pack_task, unpack_task
from fedskew.federation.seal import SealError, load_signer, seal
from fedskew.learning.precision import slow_precision
from fedskew.learning.train import TrainingError, cpu_threads, pick_device
from fedskew.model.bounds import ArchitectureError
from fedskew.site.gate import SITE_ERRORS, Gate
from fedskew.site.limits import is_simulated
from fedskew.text import printable

log = logging.getLogger("flwr.fedskew.client")

REFUSED = 400  # application error code of a reply that says why a task was not done
MOST_TOLD = 4000  # characters of a refusal: it may quote a task of any size

Work = Callable[[Message, Context], Message]


def site_mod(message: Message, context: Context, work: Work) -> Message:
    """Let a node do a task within what its site allows; see `flwr.clientapp.typing.Mod`."""
    if message.metadata.message_type.startswith(MessageType.QUERY):
        return _introduce(message, context, work)
    gate = Gate(message, context)
    try:
        return _guarded(message, context, work, gate)
    except (MessageError, ArchitectureError, ConfigError, DataError, TrainingError, SealError, *SITE_ERRORS) as error:
        return _refusal(message, context, error, gate.refuse(error))
    except Exception as error:
        if not gate.active:
            raise
        log.exception("an accident")  # the coordinator sees no more of it than the policy allows
        return _refusal(message, context, error, gate.refuse(error, known=False))


def _guarded(message: Message, context: Context, work: Work, gate: Gate) -> Message:
    task, arrays = unpack_task(message)
    admitted = gate.admit(task)
    sign = load_signer(context.node_config)  # before hours of work that nobody would believe
    if admitted is not task:
        config = dict(message.content.config_records[CONFIG]) | dict(pack_task(admitted, arrays).config_records[CONFIG])
        message.content = RecordDict(dict(message.content) | {CONFIG: ConfigRecord(config)})
    settings = admitted.config.train
    slow = slow_precision(settings.precision, pick_device(settings.device))
    if slow and not is_simulated(context.node_config):  # which is where the server is, and that has said so
        log.warning("%s", slow)
    with cpu_threads(settings.threads), gate.in_time():
        data = task_data(admitted, context)
        gate.check_data(data)
        reply = gate.release(work(message, context), data)
    return seal(reply, message, admitted.round_number, sign)


def _introduce(message: Message, context: Context, work: Work) -> Message:
    try:
        return seal(work(message, context), message, 0, load_signer(context.node_config))
    except SealError as error:
        return _refusal(message, context, error, str(error))


def _refusal(message: Message, context: Context, error: Exception, told: str) -> Message:
    name = str(context.node_config.get("name", context.node_config.get("partition-id", context.node_id)))
    log.error(
        "node %s cannot do this task: %s", name, printable(str(error)[:MOST_TOLD])
    )  # a server's words may stand in it
    text = f"node {name}: {told}"[:MOST_TOLD].encode(errors="backslashreplace").decode()  # a message holds UTF-8 only
    return Message(Error(REFUSED, text), reply_to=message)
