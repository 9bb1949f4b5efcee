"""Distillation from the model itself: hold on in function space, with or without old data."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from holdfast.batches import batches_of, collate, to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import IGNORED, inputs_of, is_causal, scored_mask
from holdfast.penalties.regularizer import Regularizer
from holdfast.pretrained import teaching
from holdfast.progress import track
from holdfast.sampling import sample_from


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
        if weight < 0 or sequences < 1 or every < 1 or (top_k is not None and top_k < 1):
            raise HoldfastError(
                f"weight={weight}, sequences={sequences}, every={every}, top_k={top_k}",
                wanted="a weight of at least 0 and counts of at least 1",
            )
        _check_teacher(model, top_k)
        self.model, self.weight, self.sequences, self.every, self.seed = model, weight, sequences, every, seed
        if isinstance(source, str):
            if source != "self":
                raise HoldfastError(f"source={source!r}", wanted='batches, a dataset, or "self"')
            source = [collate(sample_from(model, samples, length, seed=seed, progress=progress))]
        self.rows = _rows(batches_of(source))
        self._cache = None if top_k is None else self._cached(top_k, progress)
        self._divergence = 0.0

    def __call__(self) -> Tensor:
        """weight * KL at this step's sequences, a 0-d tensor; 0 at the steps that `every` skips."""
        if self.step % self.every:
            return torch.zeros((), device=device_of(self.model))
        chosen = self._chosen()
        batch = to_device(collate([self.rows[i] for i in chosen]), device_of(self.model))
        inputs, keep = _scored(batch, self.model)
        if self._cache is None:
            with torch.no_grad(), teaching(self.model):
                teacher = F.log_softmax(self.model(**inputs).logits[keep].float(), dim=-1)
            student = F.log_softmax(self.model(**inputs).logits[keep].float(), dim=-1)
        else:
            indices, teacher = (torch.cat([self._cache[i][part].to(keep.device) for i in chosen]) for part in range(2))
            student = coarse(F.log_softmax(self.model(**inputs).logits[keep].float(), dim=-1), indices)
        divergence = F.kl_div(student, teacher, log_target=True, reduction="sum") / len(teacher)
        self._divergence = float(divergence.detach())
        return self.weight * self.every * divergence

    @property
    def predicted_forgetting(self) -> float | None:
        """The KL last measured on source sequences, in nats per item: it is seen, not extrapolated."""
        return self._divergence

    def report(self) -> dict[str, float]:
        """The measured divergence."""
        return {"distill_kl": self._divergence}

    def _chosen(self) -> list[int]:
        """This step's rows: passes over all rows, each in an order of its own, as a function of the step alone."""
        count, rank, world = len(self.rows), *_rank()
        start = (self.step // self.every * world + rank) * self.sequences
        picks = []
        for position in range(start, start + self.sequences):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + position // count)
            picks.append(int(torch.randperm(count, generator=generator)[position % count]))
        return picks

    @torch.no_grad()
    def _cached(self, top_k: int, progress: bool) -> list[tuple[Tensor, Tensor]]:
        """For each row: (items, k) indices and (items, k + 1) log-probabilities, the last of all other classes."""
        cache = []
        with teaching(self.model), track("teacher", len(self.rows), shown=progress, unit="sequence") as advance:
            for row in self.rows:
                inputs, keep = _scored(to_device(collate([row]), device_of(self.model)), self.model)
                full = F.log_softmax(self.model(**inputs).logits[keep].float(), dim=-1)
                indices = full.topk(min(top_k, full.shape[1] - 1), dim=1).indices
                cache.append((indices.cpu(), coarse(full, indices).cpu()))
                advance()
        return cache


def coarse(full: Tensor, indices: Tensor) -> Tensor:
    """Log-probabilities of the chosen classes and of the rest together: (items, classes) -> (items, k + 1)."""
    chosen = full.gather(1, indices)
    rest = torch.log((1 - chosen.exp().sum(dim=1, keepdim=True)).clamp_min(1e-7))
    return torch.cat([chosen, rest], dim=1)


def _scored(batch: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], Tensor]:
    """Inputs of the forward pass, and the (batch, length) mask of positions whose prediction counts."""
    labels, _ = scored_mask(batch, shifted=is_causal(model))
    return inputs_of(batch), labels != IGNORED


def _rows(batches: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    rows = []
    for batch in batches:
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        labels = batch.get("labels", batch["input_ids"])
        for ids, attended, label in zip(batch["input_ids"], mask, labels, strict=True):
            keep = attended != 0
            if int((label[keep] != IGNORED).sum()) > 1:
                rows.append({"input_ids": ids[keep].cpu(), "labels": label[keep].cpu()})
    if not rows:
        raise HoldfastError("the source has no sequence with a scored item", remedy="pass longer or unmasked text")
    return rows


def _rank() -> tuple[int, int]:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _check_teacher(model: nn.Module, top_k: int | None) -> None:
    configs = getattr(model, "peft_config", None)
    if configs is None:
        if top_k is None:
            raise HoldfastError(
                "a model without adapters has no teacher beside it once it trains",
                remedy="pass top_k (256, say): the teacher's answers are then stored before training",
            )
        return
    for config in configs.values():
        initial = str(getattr(config, "init_lora_weights", "")).lower()
        if top_k is None and any(initial.startswith(name) for name in ("pissa", "olora", "corda")):
            raise HoldfastError(
                f"init_lora_weights={initial!r} changes the base weights, so the model without its adapter is not "
                "the pre-trained one",
                remedy="use the default initialisation",
            )
