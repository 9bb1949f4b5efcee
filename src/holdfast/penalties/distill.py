"""Distillation from the model itself: hold on in function space, with or without old data."""

from collections import deque
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.batches import collate
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import IGNORED
from holdfast.penalties.regularizer import Regularizer
from holdfast.penalties.source import SourceRows, check_counts
from holdfast.pretrained import check_base, teaching
from holdfast.progress import track
from holdfast.sampling import sample_from

REMEMBERED = 16  # evaluations in the measured forgetting: one draw of a few sequences is noisy
SMALLEST = 1e-7  # of the probability left to the classes outside the stored ones: float32's own resolution


class Distill(Regularizer):
    """weight * KL(p_anchor || p_now), mean over the items of a few source sequences per step, in nats per item.

    The teacher is the same model with its adapter switched off (learning without forgetting, arXiv 1606.09282, on
    source inputs), so there is no second copy. With source="self" the sequences are sampled from the model before
    training and no old data is needed; KL on them estimates the forgetting on the model's own distribution.

    Args:
        model: a PEFT model whose base weights are the pre-trained ones; a bare model needs `top_k`.
        source: batches, a tokenised `datasets.Dataset`, or "self".
        weight: of the KL, against a nat of target loss.
        sequences: source sequences per evaluation.
        every: evaluate at every n-th optimizer step, with n times the weight; 1 is every step.
        top_k: None runs the teacher beside the student. A number stores, before training, the teacher's k largest
            probabilities of every item; the rest is one class, which makes the KL a lower bound (data processing).
        samples: sequences drawn from the model when source="self".
        length: their length in tokens.
        seed: of the sampled text and of the order.
        progress: show progress bars.

    Raises:
        HoldfastError: no source items, a model that can't be sampled, or adapters that changed the base weights.
    """

    name = "distill"
    paper = "learning without forgetting, arXiv 1606.09282; knowledge distillation, arXiv 1503.02531"
    shared = False

    def __init__(
        self,
        model: nn.Module,
        source: Any = "self",
        weight: float = 0.3,
        *,
        sequences: int = 4,
        every: int = 1,
        top_k: int | None = None,
        samples: int = 256,
        length: int = 128,
        seed: int = 0,
        progress: bool = True,
    ) -> None:
        check_counts(weight, sequences, every)
        _check_teacher(model, top_k)
        self.model, self.weight = model, weight
        if isinstance(source, str):
            if source != "self":
                raise HoldfastError(f"source={source!r}", wanted='batches, a dataset, or "self"')
            source = [collate(sample_from(model, samples, length, seed=seed, progress=progress))]
        self.source = SourceRows(source, sequences, every, seed)
        self._cache = None if top_k is None else self._cached(top_k, progress)
        self._recent: deque[float] = deque(maxlen=REMEMBERED)

    def __call__(self) -> Tensor:
        """weight * KL at this step's sequences, a 0-d tensor; 0 at the steps that `every` skips."""
        step = self.source.now(self.step)
        if step % self.source.every:
            return torch.zeros((), device=device_of(self.model))
        chosen = self.source.chosen(step)
        inputs, labels = self.source.batch(chosen, self.model)
        keep = labels != IGNORED
        if self._cache is None:
            with torch.no_grad(), teaching(self.model):
                teacher = self._log_probabilities(inputs, keep)
            student = self._log_probabilities(inputs, keep)
        else:
            stored = [self._cache[i] for i in chosen]
            teacher = torch.cat([probabilities for _, probabilities in stored]).to(keep.device)
            indices = torch.cat([indices for indices, _ in stored]).to(keep.device)
            student = coarse(self._log_probabilities(inputs, keep), indices)
        divergence = F.kl_div(student, teacher, log_target=True, reduction="sum") / len(teacher)
        self._recent.append(float(divergence.detach()))
        return self.weight * self.source.every * divergence

    def _log_probabilities(self, inputs: dict[str, Tensor], keep: Tensor) -> Tensor:
        """(items, classes) in float32 or better."""
        logits = self.model(**inputs).logits[keep]
        return F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)

    @property
    def predicted_forgetting(self) -> float | None:
        """The mean KL of the last evaluations on source sequences, in nats per item: seen, not extrapolated."""
        return sum(self._recent) / len(self._recent) if self._recent else None

    def report(self) -> dict[str, float]:
        """The measured divergence."""
        return {"distill_kl": self._recent[-1]} if self._recent else {}

    @torch.no_grad()
    def _cached(self, top_k: int, progress: bool) -> list[tuple[Tensor, Tensor]]:
        """For each row: (items, k) indices and (items, k + 1) log-probabilities, the last of all other classes."""
        cache = []
        count = len(self.source.rows)
        with teaching(self.model), track("teacher", count, shown=progress, unit="sequence") as advance:
            for row in range(count):
                inputs, labels = self.source.batch([row], self.model)
                full = self._log_probabilities(inputs, labels != IGNORED)
                indices = full.topk(min(top_k, full.shape[1] - 1), dim=1).indices
                cache.append((indices.cpu(), coarse(full, indices).cpu()))
                advance()
        return cache


def coarse(full: Tensor, indices: Tensor) -> Tensor:
    """Log-probabilities of the chosen classes and of the rest together: (items, classes) -> (items, k + 1)."""
    chosen = full.gather(1, indices)
    rest = torch.log((1 - chosen.exp().sum(dim=1, keepdim=True)).clamp_min(SMALLEST))
    return torch.cat([chosen, rest], dim=1)


def _check_teacher(model: nn.Module, top_k: int | None) -> None:
    if top_k is not None:
        if top_k < 1:
            raise HoldfastError(f"top_k={top_k}", wanted="at least 1, or None for a live teacher")
        return
    if getattr(model, "peft_config", None) is None:
        raise HoldfastError(
            "a model without adapters has no teacher beside it once it trains",
            remedy="pass top_k (256, say): the teacher's answers are then stored before training",
        )
    check_base(model)
