"""What an encoder says without a head: its last hidden states."""

import torch
from torch import Tensor

from holdfast.likelihoods.likelihood import Comparable, precise


class Features(Comparable):
    """Hidden vectors, compared by |now - teacher|^2 summed over positions, over the teacher's own |teacher|^2.

    0 where nothing moved, about 1 where nothing of the teacher is left, whatever the size of the vectors: so a
    weight has a scale. It is not in nats. The ratio is taken over all positions of a batch together.

    Args:
        hidden: (batch, positions, features), on the model's graph.
        attended: (batch, positions) of the positions that count; None: all.
    """

    def __init__(self, hidden: Tensor, attended: Tensor | None) -> None:
        if attended is None:
            attended = torch.ones(hidden.shape[:-1], dtype=torch.bool, device=hidden.device)
        self.vectors = hidden[attended != 0]
        self.items = len(self.vectors)

    def answers(self, top_k: int | None = None) -> tuple[Tensor, ...]:
        """The vectors."""
        return (precise(self.vectors.detach()),)

    def divergence(self, answers: tuple[Tensor, ...]) -> Tensor:
        """The relative squared distance, times the items."""
        (teacher,) = answers
        size = teacher.square().sum().clamp_min(torch.finfo(teacher.dtype).tiny)
        return self.items * (self.vectors - teacher).square().sum() / size
