"""What a node does with a task: train or evaluate whatever model it describes, answer.

What is wrong with a task or with the node's data is raised here; `site.mod`, around this, makes one clear answer of it.
"""

from __future__ import annotations

import time
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor

from fedskew.federation.messages import (
    CLASS_COUNTS,
    CLASSES,
    EXAMPLES,
    REPORT,
    VALIDATION_METRICS,
    MessageError,
    Task,
    pack_reply,
    unpack_task,
)
from fedskew.federation.weights import to_tensors
from fedskew.learning.datasets import NodeData, batches, node_data, node_name
from fedskew.learning.local import Trainer, local_seed
from fedskew.learning.train import cpu_threads, evaluate, pick_device
from fedskew.methods import METHODS
from fedskew.model.bounds import ArchitectureError
from fedskew.model.finite import not_finite
from fedskew.model.fusion import MultimodalModel, build
from fedskew.model.layout import layout


def handle_train(message: Message, context: Context) -> Message:
    """Answer a training task with the update, example count, losses and timings.

    Raises:
        MessageError, ArchitectureError, ConfigError, DataError, TrainingError: what is wrong, and the remedy.
    """
    task, arrays = unpack_task(message)
    with cpu_threads(task.config.train.threads):
        return _train(task, *load_model(task, arrays), task_data(task, context), message)


def handle_evaluate(message: Message, context: Context) -> Message:
    """Answer an evaluation task with the metrics on the node's validation images; raises as `handle_train`."""
    task, arrays = unpack_task(message)
    with cpu_threads(task.config.train.threads):
        return _evaluate(task, load_model(task, arrays)[0], task_data(task, context), message)


def handle_query(message: Message, context: Context) -> Message:
    """Say what this node is called; touches no data."""
    report = ConfigRecord({"node": node_name(context.node_config), "notes": []})
    return Message(RecordDict({REPORT: report}), reply_to=message)


def task_data(task: Task, context: Context) -> NodeData:
    """The node's data for a task; opened once a process."""
    arch = task.architecture
    return node_data(
        task.config.data, arch.image_size, context.node_config, task.split_hash, vocabularies=arch.vocabularies
    )


def load_model(task: Task, arrays: ArrayRecord) -> tuple[MultimodalModel, dict[str, Tensor]]:
    """The model of a task on the configured device, and the extras that came with it.

    Raises:
        ArchitectureError: the weights do not fit the architecture.
        MessageError: it asks to train nothing.
    """
    if not task.work.train.of(layout(task.architecture)):
        raise MessageError(f"field 'work' of the task trains no tensor of its model: {task.work.train!r:.80}")
    try:
        tensors = to_tensors(arrays, task.downloaded())
        state = {name: tensors.pop(name) for name in layout(task.architecture)}
        if name := not_finite(state | tensors):
            raise ValueError(f"{name} is not finite; the coordinator must go back to an earlier round")
        model = build(task.architecture, state, drop_path=task.config.model.drop_path)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise ArchitectureError(f"the weights do not fit the architecture: {str(error)[:500]}") from None
    return model.to(pick_device(task.config.train.device)), tensors


def _train(task: Task, model: MultimodalModel, extras: dict[str, Tensor], node: NodeData, message: Message) -> Message:
    start, config = time.perf_counter(), task.config
    seed = local_seed(config.run.seed, task.round_number, node.name)
    shared = config.train.class_counts == "global"
    trainer = Trainer(node.data, node.train, config.train, seed, task.round_number, task.rounds,
                      task.class_counts if shared else ())  # fmt: skip
    answer = METHODS[task.work.method](config).answer(model, task.work, trainer, extras)
    metrics = {
        EXAMPLES: len(node.train),
        "loss": answer.result.loss,
        "first-loss": answer.result.first_loss,
        "steps": answer.result.steps,
        "seconds-train": answer.result.seconds,
        "seconds": time.perf_counter() - start,
    }
    report = _report(node)
    if shared:  # a site's policy may take them out again
        counts = trainer.counts(task.architecture)
        report |= {CLASSES: list(task.architecture.classes), CLASS_COUNTS: counts.tolist()}
    return pack_reply(message, answer.tensors, metrics, report)


def _evaluate(task: Task, model: MultimodalModel, node: NodeData, message: Message) -> Message:
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
