"""Knowledge distillation (Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from fedskew.model.fusion import MultimodalModel


@dataclass(frozen=True)
class Teacher:
    """A model whose answers another one learns, beside the labels.

    Attributes:
        share: weight of the teacher's answers in the loss; the labels have the rest.
        temperature: by which both models' logits are divided; the larger, the more its second choices count.
    """

    model: MultimodalModel
    share: float
    temperature: float

    @torch.no_grad()
    def answers(self, images: Tensor, metadata: Tensor) -> Tensor:
        """Its logits [B, classes] of images [B, 3, S, S] and metadata [B, V]."""
        self.model.eval()
        logits: Tensor = self.model(images, metadata)
        return logits.float()

    def loss(self, labelled: Tensor, logits: Tensor, answers: Tensor) -> Tensor:
        """The loss of labels [] and that of the teacher's answers, T² · KL(teacher ‖ student), as one.

        Args:
            logits, answers: [B, classes].
        """
        student, teacher = (log_softmax(values.float() / self.temperature, -1) for values in (logits, answers))
        taught = self.temperature**2 * kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.share) * labelled + self.share * taught
