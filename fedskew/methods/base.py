"""What a method of training decides: what nodes train, what travels, and what the server makes of the mean.

Everything else (who takes part, checks, aggregation, privacy, records) is the same for every method. A method is pure:
what it knows of a run is in its configuration, in the `Model` and in the number of the round, so that a resumed run
goes on as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedskew.learning.local import Trainer
from fedskew.learning.optimiser import moments_layout
from fedskew.learning.server_data import ServerData
from fedskew.learning.train import TrainResult
from fedskew.model.architecture import Architecture
from fedskew.model.fusion import MultimodalModel
from fedskew.model.layout import EVERYTHING, Layout, Part, TensorSpec, layout
from fedskew.pruning.step import StepResult

MOMENTS = "moments"  # of the optimiser
EXTRAS: Mapping[str, Callable[[Layout], Layout]] = {MOMENTS: moments_layout}  # kind → layout beside trained tensors


@dataclass(frozen=True)
class Work:
    """What nodes are to do with a model in a round.

    Attributes:
        method: whose `answer` does it.
        train: what is trained; the rest is frozen.
        up: what of the model travels back.
        extras: kinds of further tensors that travel both ways (`EXTRAS`): their mean goes on with the model.
    """

    method: str
    train: Part = EVERYTHING
    up: Part = EVERYTHING
    extras: tuple[str, ...] = ()

    def beside(self, arch: Architecture) -> dict[str, TensorSpec]:
        """The layout of its extras."""
        trained = self.train.of(layout(arch))
        return {name: spec for kind in self.extras for name, spec in EXTRAS[kind](trained).items()}


@dataclass(frozen=True)
class Model:
    """A global model between two rounds: what a checkpoint holds.

    Attributes:
        companions: tensors that go on with it and are cut with it, see `pruning.slicing.slice_companions`.
    """

    architecture: Architecture
    state: Mapping[str, Tensor]
    companions: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What a method made of a model, and what the record says of it."""

    model: Model
    pruned: StepResult | None = None
    seconds_training: float = 0.0
    taught: TrainResult | None = None  # by a dense model, see `distillation`


@dataclass(frozen=True)
class Answer:
    """What a node sends back: tensors of the work's `up` and its extras, and how its training went."""

    tensors: Mapping[str, Tensor]
    result: TrainResult


class Method(Protocol):
    """One way to train together; see `methods.METHODS` for those that there are."""

    def start(self, model: Model, server: ServerData) -> Step:
        """The model that the first round starts from."""

    def work(self, arch: Architecture, number: int) -> Work:
        """What nodes are asked in round `number`; a pure function."""

    def answer(self, net: MultimodalModel, work: Work, node: Trainer, extras: Mapping[str, Tensor]) -> Answer:
        """What a node does with the net of its task; on the node.

        Args:
            extras: that came with the task.
        """

    def advance(self, model: Model, number: int, server: ServerData) -> Step:
        """The model of the next round, from the accepted mean of round `number`."""
