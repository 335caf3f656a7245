"""What a node does with a task: validate it, train or evaluate whatever model it describes, answer."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from fedskew.config.schema import ConfigError, TrainConfig
from fedskew.data.batches import Augmentation, ImageBatches
from fedskew.data.samples import DataError, encode_labels
from fedskew.federation.messages import (
    CLASS_COUNTS,
    CLASSES,
    EXAMPLES,
    MOMENTS,
    REPORT,
    VALIDATION_METRICS,
    MessageError,
    Task,
    pack_reply,
    unpack_task,
)
from fedskew.federation.seal import SealError, load_signer, seal
from fedskew.federation.weights import layout, to_tensors
from fedskew.learning.datasets import DataSet, NodeData, batches, node_data, node_name
from fedskew.learning.freezing import freeze_stages
from fedskew.learning.imbalance import class_counts, drawing_weights
from fedskew.learning.optimiser import Moments
from fedskew.learning.train import TrainingError, cpu_threads, evaluate, pick_device, train
from fedskew.model.architecture import Architecture
from fedskew.model.bounds import ArchitectureError
from fedskew.model.finite import not_finite
from fedskew.model.fusion import MultimodalModel, build
from fedskew.site.gate import SITE_ERRORS, Gate
from fedskew.text import printable

log = logging.getLogger("flwr.fedskew.client")

REFUSED = 400  # application error code of a reply that says why a task was not done

Answer = Callable[[Task, MultimodalModel, Moments, NodeData, Message], Message]


def handle_train(message: Message, context: Context) -> Message:
    """Answer a training task with the update, example count, losses and timings."""
    return _handle(message, context, _train)


def handle_evaluate(message: Message, context: Context) -> Message:
    """Answer an evaluation task with the metrics on the node's validation images."""
    return _handle(message, context, _evaluate)


def handle_query(message: Message, context: Context) -> Message:
    """Say what this node is called; touches no data."""
    report = ConfigRecord({"node": node_name(context.node_config), "notes": []})
    try:
        return seal(Message(RecordDict({REPORT: report}), reply_to=message), message, 0,
                    load_signer(context.node_config))  # fmt: skip
    except SealError as error:
        return _refusal(message, context, error, str(error))


def _handle(message: Message, context: Context, answer: Answer) -> Message:
    """Run a task; what is wrong with it or with the node's data becomes one clear error reply, not a crash."""
    gate = Gate(message, context)
    try:
        task, arrays = unpack_task(message)
        task = gate.admit(task)
        sign, config = load_signer(context.node_config), task.config
        with cpu_threads(config.train.threads):
            arch = task.architecture
            data = node_data(
                config.data, arch.image_size, context.node_config, task.split_hash, vocabularies=arch.vocabularies
            )
            gate.check_data(data)
            reply = gate.release(answer(task, *load_model(task, arrays), data, message), data)
            return seal(reply, message, task.round_number, sign)
    except (MessageError, ArchitectureError, ConfigError, DataError, TrainingError, SealError, *SITE_ERRORS) as error:
        return _refusal(message, context, error, gate.refuse(error))
    except Exception as error:
        if not gate.active:
            raise
        log.exception("an accident")  # the coordinator sees no more of it than the policy allows
        return _refusal(message, context, error, gate.refuse(error, known=False))


def _refusal(message: Message, context: Context, error: Exception, told: str) -> Message:
    name = str(context.node_config.get("name", context.node_config.get("partition-id", context.node_id)))
    log.error("node %s cannot do this task: %s", name, printable(str(error)))  # a server's words may stand in it
    return Message(Error(REFUSED, f"node {name}: {told}"), reply_to=message)


def load_model(task: Task, arrays: ArrayRecord) -> tuple[MultimodalModel, Moments]:
    """The model of a task on the configured device, and the moments that came with it.

    Raises:
        ArchitectureError: the weights do not fit the architecture.
    """
    try:
        tensors = to_tensors(arrays, task.downloaded())
        state = {name: tensors.pop(name) for name in layout(task.architecture)}
        if name := not_finite(state | tensors):
            raise ValueError(f"{name} is not finite; the coordinator must go back to an earlier round")
        model = build(task.architecture, state, drop_path=task.config.model.drop_path)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ArchitectureError(f"the weights do not fit the architecture: {str(error)[:500]}") from None
    return model.to(pick_device(task.config.train.device)), tensors


def _train(task: Task, model: MultimodalModel, moments: Moments, node: NodeData, message: Message) -> Message:
    start, config = time.perf_counter(), task.config
    freeze_stages(model, task.frozen)
    seed = local_seed(config.run.seed, task.round_number, node.name)
    data = training_batches(node.data, node.train, task.architecture, config.train, seed)
    counts = count_classes(node.data, node.train, task.architecture)
    known = counts
    if config.train.class_counts == "global" and task.class_counts:
        known = np.maximum(counts, task.class_counts)  # a class that only a silent node has must not weigh nothing
    result = train(
        model,
        data,
        config.train,
        round_number=task.round_number,
        rounds=task.rounds,
        seed=seed,
        counts=known,
        moments=moments or None,
    )
    metrics = {
        EXAMPLES: len(node.train),
        "loss": result.loss,
        "first-loss": result.first_loss,
        "steps": result.steps,
        "seconds-train": result.seconds,
        "seconds": time.perf_counter() - start,
    }
    update = {name: tensor for name, tensor in model.state_dict().items() if task.uploads(name)}
    report = _report(node)
    if config.train.class_counts == "global":  # a site's policy may take them out again
        report |= {CLASSES: list(task.architecture.classes), CLASS_COUNTS: counts.tolist()}
    return pack_reply(message, update | (result.moments if MOMENTS in task.extras else {}), metrics, report)


def _evaluate(task: Task, model: MultimodalModel, _: Moments, node: NodeData, message: Message) -> Message:
    if not len(node.validation):
        note = f"{node.name} has no validation images: its {len(node.train)} images are all needed for training"
        return pack_reply(message, None, {EXAMPLES: 0}, {"node": node.name, "notes": [*node.data.notes, note]})
    device = pick_device(task.config.train.device)
    size = task.config.run.eval_batch_size
    data = batches(node.data, node.validation, task.architecture, batch_size=size, device=device)
    found = evaluate(model, data, task.config.train)
    # AUROC is None where all images are of one class, and a message holds numbers
    metrics: dict[str, Any] = {name: found[name] for name in VALIDATION_METRICS if found[name] is not None}
    return pack_reply(message, None, {EXAMPLES: found["examples"], **metrics}, _report(node))


def _report(node: NodeData) -> dict[str, Any]:
    return {"node": node.name, "notes": list(node.data.notes)}


def training_batches(
    data: DataSet, indices: np.ndarray, arch: Architecture, config: TrainConfig, seed: int
) -> ImageBatches:
    """Batches for training, drawn and augmented as the configuration asks."""
    labels = encode_labels(tuple(data.samples[i] for i in indices), arch.classes)
    return batches(data, indices, arch, batch_size=config.batch_size, seed=seed, augmentation=augmentation(config),
                   drawing=drawing_weights(labels, config.sampling), device=pick_device(config.device))  # fmt: skip


def count_classes(data: DataSet, indices: np.ndarray, arch: Architecture) -> np.ndarray:
    """Images of each class of the model: int64 [classes]."""
    labels = encode_labels(tuple(data.samples[i] for i in indices), arch.classes)
    return class_counts(labels, len(arch.classes))


def augmentation(config: TrainConfig) -> Augmentation:
    """The augmentation that the configuration asks for."""
    return Augmentation(
        config.flips, config.quarter_turns, config.colour, config.crop, config.zoom, config.rand_augment
    )


def local_seed(seed: int, round_number: int, node: str) -> int:
    """Seed of one node's training in one round: the same on every machine and in every process."""
    return zlib.crc32(f"{seed}/{round_number}/{node}".encode())
