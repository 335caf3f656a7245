"""Federated averaging (McMahan et al., 2017): every node trains everything, the mean is the next model."""

from __future__ import annotations

import time
from collections.abc import Mapping

from torch import Tensor

from fedskew.config.schema import Config
from fedskew.learning.freezing import train_only
from fedskew.learning.local import Trainer
from fedskew.learning.server_data import ServerData
from fedskew.methods.base import MOMENTS, Answer, Model, Step, Work
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel

AVERAGE = "average"


class Average:
    """See `base.Method`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def start(self, model: Model, server: ServerData) -> Step:
        """The warm start, if the configuration asks for one."""
        return warm_start(model, server, self._config)

    def work(self, arch: Architecture, number: int) -> Work:
        """Everything is trained and travels."""
        return Work(AVERAGE, extras=moments_travel(self._config))

    def answer(self, net: MultimodalModel, work: Work, node: Trainer, extras: Mapping[str, Tensor]) -> Answer:
        """Train."""
        return train_locally(net, work, node, extras)

    def advance(self, model: Model, number: int, server: ServerData) -> Step:
        """The mean, as it is."""
        return Step(model)


def moments_travel(config: Config) -> tuple[str, ...]:
    """The extras of a method that trains with AdamW: its moments, where they are averaged."""
    return (MOMENTS,) if config.train.moments == "averaged" else ()


def warm_start(model: Model, server: ServerData, config: Config) -> Step:
    """Train on the open data for `train.warm-start-epochs`, before the first round, with the nodes' own recipe."""
    if not config.train.warm_start_epochs:
        return Step(model)
    start = time.perf_counter()
    state, moments = server.warm_start(model.state, model.architecture)
    companions = moments if moments_travel(config) else {}
    return Step(Model(model.architecture, state, companions), seconds_training=time.perf_counter() - start)


def train_locally(net: MultimodalModel, work: Work, node: Trainer, extras: Mapping[str, Tensor]) -> Answer:
    """Train what the work asks for, from the moments that came with it, if any."""
    train_only(net, work.train)
    result = node.train(net, extras or None)
    update = {name: tensor for name, tensor in net.state_dict().items() if name in work.up}
    return Answer(update | (dict(result.moments) if MOMENTS in work.extras else {}), result)
