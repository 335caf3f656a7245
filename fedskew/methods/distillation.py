"""What pruning lost, won back on the server: in the last rounds the global model is taught by a dense one on open data.

The teacher is a finished run's model (`train.distil-teacher`), or the best dense global model of the run itself, which
then goes on with the model as a companion: a resumed run has the same teacher.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fedskew.config.schema import Config, ConfigError
from fedskew.learning.freezing import train_only
from fedskew.learning.initial import read_named
from fedskew.learning.server_data import ServerData
from fedskew.learning.teacher import Teacher
from fedskew.methods.base import Model, Step
from fedskew.model.fusion import MultimodalModel
from fedskew.model.layout import Part

STATE, SCORE = "teacher.", "teacher-score"  # companions without a slash are never cut


def is_on(config: Config) -> bool:
    """Whether the configuration asks for distillation."""
    return bool(config.train.distil_epochs and config.train.distil_rounds)


def remembered(model: Model, server: ServerData, config: Config) -> Model:
    """The model with the best dense one so far (by balanced accuracy on the images that rounds are judged by).

    To be called before anything is cut.
    """
    if not is_on(config) or config.train.distil_teacher or model.architecture != model.architecture.dense():
        return model
    score = server.judge(server.net(model.state, model.architecture))
    if SCORE in model.companions and score <= float(model.companions[SCORE]):
        return model
    kept = {name: tensor for name, tensor in model.companions.items() if not name.startswith(STATE)}
    own = {STATE + name: tensor.clone() for name, tensor in model.state.items()}
    return replace(model, companions={**kept, **own, SCORE: torch.tensor([score])})


def taught(step: Step, number: int, server: ServerData, config: Config, part: Part) -> Step:
    """The step with its model taught by the teacher, in the last `train.distil-rounds` rounds; off: as it is.

    Args:
        part: of the model that is trained.

    Raises:
        ConfigError: there is no teacher, or its classes are others.
    """
    if not is_on(config) or number <= config.federation.rounds - config.train.distil_rounds:
        return step
    model, arch = step.model, step.model.architecture
    teacher = Teacher(_teacher(model, server, config), config.train.distil_share, config.train.distil_temperature)
    net = server.net(model.state, arch, drop_path=config.model.drop_path)
    train_only(net, part)
    result = server.teach(net, teacher, number)
    state = {name: tensor.cpu() for name, tensor in net.state_dict().items()}
    return replace(step, model=replace(model, state=state), taught=result)


def _teacher(model: Model, server: ServerData, config: Config) -> MultimodalModel:
    arch = model.architecture
    if place := config.train.distil_teacher:
        found, state = read_named("train.distil-teacher", place)
        if (found.classes, found.vocabularies, found.image_size) != (arch.classes, arch.vocabularies, arch.image_size):
            raise ConfigError(
                f"train.distil-teacher: {place} is a model of other classes, metadata or image size than this run's"
            )
        return server.net(state, found)
    state = {name.removeprefix(STATE): tensor for name, tensor in model.companions.items() if name.startswith(STATE)}
    if not state:
        raise ConfigError(
            "train.distil-epochs is set, and no round of this run had a dense model that could teach: give "
            "train.distil-teacher, a run or a model file"
        )
    return server.net(state, arch.dense())
