"""A graph is measured against the model that it was made of, and the way to fewer bits that loses least is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from onnx import ModelProto

from fedskew.data.batches import Batch
from fedskew.errors import FedskewError
from fedskew.export.checks import Gate, Parity, gate, parity
from fedskew.export.images import CheckImages
from fedskew.export.quantise import dynamic_int8, half, static_int8
from fedskew.export.session import feeds, logits_of, open_session
from fedskew.model.fusion import MultimodalModel

FP32, FP16, INT8 = PRECISIONS = ("fp32", "fp16", "int8")
Say = Callable[[str], None]


class ExportError(FedskewError, RuntimeError):
    """A model that is not exported; the message says why. No file was written."""


class Check:
    """Measures graphs against a model, each on the same images.

    Attributes:
        parity: of the float32 graph with PyTorch.
        gate: what the way that was kept loses against the float32 graph; None before `smaller`.
        method: that way: `half`, `static` or `dynamic`; empty before.
        tried: the gates of all ways, the one that was kept among them.
        test: the same as `gate` on the run's test images, where they are known. Nothing is chosen by it.
    """

    def __init__(self, model: MultimodalModel, images: CheckImages, say: Say) -> None:
        self._model, self._images, self._say = model, images, say
        self.parity = Parity(0, 0.0, 0.0)
        self.gate: Gate | None = None
        self.test: Gate | None = None
        self.method, self.tried = "", dict[str, Gate]()
        self._labels = self._reference = np.zeros(0)

    def same_as_torch(self, graph: ModelProto) -> None:
        """Raise `ExportError` unless a float32 graph says what PyTorch says."""
        run = self._session(graph)
        triples = [
            (batch.labels.numpy(), self._torch(batch), run(batch.images.numpy(), batch.metadata.numpy()))
            for batch in self._batches(self._images.checked, "fp32 and PyTorch")
        ]
        self._labels, expected, self._reference = (np.concatenate(part) for part in zip(*triples, strict=True))
        self.parity = parity(expected, self._reference)
        if failure := self.parity.failure:
            raise ExportError(f"nothing was written: the ONNX graph is not the model: {failure}")

    def smaller(self, graph: ModelProto, precision: str) -> ModelProto:
        """The best of the ways to a precision that passes the gate: the one with the fewest other classes.

        Raises:
            ExportError: none passes.
        """
        ways: dict[str, Callable[[], ModelProto]] = {"half": lambda: half(graph)}
        if precision == INT8:
            ways = {"static": lambda: static_int8(graph, self._calibration()), "dynamic": lambda: dynamic_int8(graph)}
        made = {name: make() for name, make in ways.items()}
        for name, one in made.items():
            self.tried[name] = self._gate(one, f"{precision} {name}")
        passed = {name: one for name, one in self.tried.items() if not one.failure}
        if not passed:
            lines = "; ".join(f"{name}: {one.failure}" for name, one in self.tried.items())
            raise ExportError(
                f"nothing was written: {precision} does not pass on {len(self._labels)} {self._images.what}: {lines}. "
                "Export it in fp32"
            )
        self.method = max(passed, key=lambda name: (passed[name].same, -passed[name].difference))
        self.gate = passed[self.method]
        self._test(graph, made[self.method], precision)
        return made[self.method]

    def _gate(self, graph: ModelProto, what: str) -> Gate:
        run = self._session(graph)
        found = [
            run(batch.images.numpy(), batch.metadata.numpy()) for batch in self._batches(self._images.checked, what)
        ]
        return gate(self._labels, self._model.architecture.classes, self._reference, np.concatenate(found))

    def _test(self, reference: ModelProto, graph: ModelProto, precision: str) -> None:
        if self._images.test is None:
            return
        first, second = self._session(reference), self._session(graph)
        triples = []
        for batch in self._batches(self._images.test, f"{precision} on the test images"):
            given = batch.images.numpy(), batch.metadata.numpy()
            triples.append((batch.labels.numpy(), first(*given), second(*given)))
        labels, expected, found = (np.concatenate(part) for part in zip(*triples, strict=True))
        self.test = gate(labels, self._model.architecture.classes, expected, found)

    def _calibration(self) -> Iterator[Mapping[str, np.ndarray]]:
        for batch in self._batches(self._images.calibration, "calibration"):
            yield feeds(batch.images.numpy(), batch.metadata.numpy())

    def _batches(self, indices: np.ndarray, what: str) -> Iterator[Batch]:
        """Batches of these images, saying how far it is."""
        start, done = time.monotonic(), 0
        for batch in self._images.batches(indices, self._model.architecture):
            yield batch
            done += len(batch.labels)
            left = (time.monotonic() - start) * (len(indices) - done) / done
            self._say(f"{what}: {done} of {len(indices)} images, {left:.0f} s left")

    @staticmethod
    def _session(graph: ModelProto) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        session = open_session(graph.SerializeToString(), torch.get_num_threads())
        return lambda images, metadata: logits_of(session, images, metadata)

    def _torch(self, batch: Batch) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self._model(batch.images, batch.metadata).numpy()
        return found
