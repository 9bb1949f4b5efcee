"""Several labels at once, each present or not: multi-label classification."""

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.likelihoods.elementwise import Elementwise
from holdfast.likelihoods.likelihood import IGNORED, precise


class Bernoulli(Elementwise):
    """y_c ~ Bernoulli(sigmoid(output_c)) for each label c: the binary cross-entropy, summed over labels.

    Targets may be probabilities; missing ones are -100. The Fisher information of an output is p (1 - p).
    Arguments and errors as of `Elementwise`.
    """

    @staticmethod
    def present(targets: Tensor) -> Tensor:
        """Not -100."""
        return targets != IGNORED

    def loss(self) -> Tensor:
        """The binary cross-entropy."""
        kept = precise(self.outputs)[self.counted], self.labels()[self.counted]
        return F.binary_cross_entropy_with_logits(*kept, reduction="sum")

    def data_gradient(self) -> Tensor:
        """p - y."""
        return self._emptied(self._now().sigmoid() - self.labels())

    def noise_gradient(self, uniform: Tensor) -> Tensor:
        """p - y, y ~ p."""
        probabilities = self._now().sigmoid()
        return probabilities - (uniform < probabilities).to(probabilities)

    def information(self) -> Tensor:
        """p (1 - p)."""
        probabilities = self._now().sigmoid()
        return probabilities * (1 - probabilities)

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """The outputs of the scored rows."""
        return (self._now()[self.scored],)

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """Sum over labels of KL between two Bernoulli distributions."""
        counted = self.counted[self.scored]
        teacher, student = answers[0][counted], precise(self.outputs)[self.scored][counted]
        chances = torch.stack([teacher, -teacher]), torch.stack([student, -student])
        log_teacher, log_student = (F.logsigmoid(both) for both in chances)
        return F.kl_div(log_student, log_teacher, log_target=True, reduction="sum")
