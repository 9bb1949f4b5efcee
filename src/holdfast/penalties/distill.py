"""Distillation from the model itself: hold on in function space, with or without old data."""

from collections import deque
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.batches import collate
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import ForwardLoss, Items
from holdfast.likelihoods.batches import is_headless
from holdfast.likelihoods.likelihood import Comparable
from holdfast.penalties.regularizer import Accepted, Handle, Regularizer, check_alone
from holdfast.penalties.source import SourceRows, check_counts
from holdfast.pretrained import check_base, teaching
from holdfast.progress import track
from holdfast.sampling import sample_from
from holdfast.steady import without_dropout

REMEMBERED = 16  # evaluations in the measured forgetting: one draw of a few sequences is noisy
PROMPT = 4  # evaluations that a budget is steered by
On = Literal["head", "features"]


class Distill(Regularizer):
    """weight * KL(p_anchor || p_now), mean over the items of a few source inputs per step, in nats per item.

    The teacher is the same model with its adapter switched off (learning without forgetting, arXiv 1606.09282, on
    source inputs), so there is no second copy, and any PEFT method will do. The KL is that of the head's own
    likelihood: of classes, of frames for CTC (an upper bound of that between label sequences, summed over an
    utterance), of normal noise for regression. With source="self" the sequences are sampled from a language model
    before training and no old data is needed; KL on them estimates the forgetting on the model's own distribution.

    The student has no dropout here either, whatever it has on the target: otherwise the KL would hold the dropout's
    noise, and would not be 0 at the start.

    Inputs need no labels: target inputs serve too. Where there is no head, or the head is as new as the target, the
    last hidden states are held instead (on="features"): |now - teacher|^2 over the teacher's |teacher|^2, over the
    attended positions of a step. That is 0 to about 1 and not in nats, so it predicts no forgetting.

    Args:
        model: a PEFT model whose base weights are the pre-trained ones; a bare model needs `top_k`.
        source: batches of inputs of any kind (input_ids, input_values, pixel_values, ...), a tokenised
            `datasets.Dataset`, or "self".
        weight: of the divergence, against a nat of target loss.
        on: "head" or "features"; None: the head, or the features where a transformers model has none.
        sequences: source inputs per evaluation.
        every: evaluate at every n-th optimizer step, with n times the weight; 1 is every step.
        top_k: None runs the teacher beside the student. A number stores, before training, the teacher's k largest
            probabilities of every item; the rest is one class, which makes the KL a lower bound (data processing).
            What has no classes (regression, features) is stored whole.
        samples: sequences drawn from the model when source="self".
        length: their length in tokens.
        seed: of the sampled text and of the order.
        budget: nats per item, or a text such as "1%": the weight is then set step by step so that the measured
            divergence stays within it; see `keep_within`.
        forward_loss: of models that are not of transformers, as for `Anchor.estimate`.
        progress: show progress bars.

    Raises:
        HoldfastError: no source items, a model that can't be sampled, adapters that changed the base weights, a
            model of which nothing but a loss is known, or answers to be stored of recordings that are padded unseen.
    """

    name = "distill"
    paper = "learning without forgetting, arXiv 1606.09282; knowledge distillation, arXiv 1503.02531"
    shared = False
    knob = "weight"

    def __init__(
        self,
        model: nn.Module,
        source: Any = "self",
        weight: float = 0.3,
        *,
        on: On | None = None,
        sequences: int = 4,
        every: int = 1,
        top_k: int | None = None,
        samples: int = 256,
        length: int = 128,
        seed: int = 0,
        budget: Accepted | None = None,
        forward_loss: ForwardLoss | None = None,
        progress: bool = True,
    ) -> None:
        check_counts(weight, sequences, every)
        _check_teacher(model, top_k)
        self.model, self.weight = model, weight
        self.reader = Items(model, forward_loss)
        self.on = _held(model, on, forward_loss)
        if isinstance(source, str):
            if source != "self":
                raise HoldfastError(f"source={source!r}", wanted='batches, a dataset, or "self"')
            source = [collate(sample_from(model, samples, length, seed=seed, progress=progress))]
        self.source = SourceRows(source, sequences, every, seed, self.reader, scored=self.on == "head")
        self._cache = None if top_k is None else self._cached(top_k, progress)
        self._recent: deque[float] = deque(maxlen=REMEMBERED)
        if budget is not None:
            check_alone("weight", weight, 0.3)
            self.keep_within(budget)

    def __repr__(self) -> str:
        return f"Distill({self.on}, weight={self.weight}, {len(self.source.rows)} inputs)"

    def __call__(self) -> Tensor:
        """weight * divergence at this step's inputs, a 0-d tensor; 0 at the steps that `every` skips."""
        step = self.source.now(self.step)
        if step % self.source.every:
            return torch.zeros((), device=device_of(self.model))
        chosen = self.source.chosen(step)
        batch = self.source.batch(chosen, self.model)
        teacher = self._taught(batch) if self._cache is None else self._stored(self._cache, chosen)
        with without_dropout(self.model):
            student = self._read(batch)
        divergence = student.divergence(teacher) / max(student.items, 1)
        self._recent.append(float(divergence.detach()))
        self.steer()
        return self.weight * self.source.every * divergence

    def _read(self, batch: dict[str, Tensor]) -> Comparable:
        """What the model says of a batch now."""
        return self.reader.features(batch) if self.on == "features" else self.reader.read(batch)

    @torch.no_grad()
    def _taught(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        with teaching(self.model):
            return self._read(batch).answers()

    def _stored(self, cache: list[tuple[Tensor, ...]], chosen: list[int]) -> tuple[Tensor, ...]:
        parts = zip(*(cache[row] for row in chosen), strict=True)
        return tuple(torch.cat(part).to(device_of(self.model)) for part in parts)

    @property
    def predicted_forgetting(self) -> float | None:
        """The mean KL of the last evaluations on source inputs, in nats per item: seen, not extrapolated."""
        return sum(self._recent) / len(self._recent) if self._recent and self.on == "head" else None

    @property
    def foretells(self) -> bool:
        """Whether the divergence is in nats."""
        return self.on == "head"

    def _handles(self, count: int) -> list[Handle]:
        """The weight, set by what the last few evaluations saw: fewer of them than are reported, for less delay."""
        (_, turn), *_ = super()._handles(count)
        return [(self._seen_lately, turn)]

    def _seen_lately(self) -> float | None:
        lately = list(self._recent)[-PROMPT:]
        return sum(lately) / len(lately) if lately else None

    def state(self) -> dict[str, Any]:
        """With the last evaluations, which make up the forecast."""
        return {**super().state(), "recent": list(self._recent)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; raises HoldfastError where it is of other budgets."""
        super().restore(state)
        self._recent.extend(state["recent"])

    def report(self) -> dict[str, float]:
        """The measured divergence."""
        name = "distill_kl" if self.on == "head" else "distill_features"
        return {name: self._recent[-1]} if self._recent else {}

    @torch.no_grad()
    def _cached(self, top_k: int, progress: bool) -> list[tuple[Tensor, ...]]:
        """The teacher's answers to each row."""
        self.source.check_storable()
        cache = []
        count = len(self.source.rows)
        with teaching(self.model), track("teacher", count, shown=progress, unit="sequence") as advance:
            for row in range(count):
                answers = self._read(self.source.batch([row], self.model)).answers(top_k)
                cache.append(tuple(answer.cpu() for answer in answers))
                advance()
        return cache


def _held(model: nn.Module, on: On | None, forward_loss: ForwardLoss | None) -> On:
    """What is held on to."""
    if on not in (None, "head", "features"):
        raise HoldfastError(f"on={on!r}", wanted='"head", "features" or None')
    if on == "features" and forward_loss is not None:
        raise HoldfastError(
            'on="features" reads the hidden states of a transformers model, and forward_loss was given',
            remedy="return what is to be held as (outputs, targets) from forward_loss",
        )
    return on or ("features" if forward_loss is None and is_headless(model) else "head")


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
