"""Divergence between distributions over classes, whole or cut to their most probable ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast.likelihoods.likelihood import precise

SMALLEST = 1e-7  # of the probability left to the classes outside the stored ones: float32's own resolution


def log_probabilities(logits: Tensor) -> Tensor:
    """(rows, classes), in float32 or better."""
    return F.log_softmax(precise(logits), dim=-1)


def coarse(full: Tensor, indices: Tensor) -> Tensor:
    """Log-probabilities of the chosen classes and of the rest together: (items, classes) -> (items, k + 1)."""
    chosen = full.gather(1, indices)
    rest = torch.log((1 - chosen.exp().sum(dim=1, keepdim=True)).clamp_min(SMALLEST))
    return torch.cat([chosen, rest], dim=1)


def answers(logits: Tensor, top_k: int | None) -> tuple[Tensor, ...]:
    """Log-probabilities (rows, classes), or (rows, k + 1) coarse ones with the (rows, k) indices they belong to."""
    full = log_probabilities(logits.detach())
    if top_k is None:
        return (full,)
    indices = full.topk(min(top_k, full.shape[1] - 1), dim=1).indices
    return coarse(full, indices), indices


def divergence(logits: Tensor, teacher: tuple[Tensor, ...]) -> Tensor:
    """Sum over rows of KL(teacher || softmax(logits)); of coarse answers, a lower bound (data processing)."""
    student = log_probabilities(logits)
    if len(teacher) == 2:
        student = coarse(student, teacher[1])
    return F.kl_div(student, teacher[0], log_target=True, reduction="sum")
