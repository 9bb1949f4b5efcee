"""Which likelihood belongs to a head: read off a transformers model's output, or off what a user's function gives."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.likelihoods.batches import (
    bare,
    frames_of,
    is_causal,
    is_ctc,
    numbers,
    problem_type,
    scored_mask,
)
from holdfast.likelihoods.bernoulli import Bernoulli
from holdfast.likelihoods.categorical import Categorical
from holdfast.likelihoods.ctc import CTC
from holdfast.likelihoods.gaussian import Gaussian
from holdfast.likelihoods.likelihood import IGNORED, Likelihood
from holdfast.likelihoods.unknown import Unknown


def of_model(model: nn.Module, batch: Mapping[str, Tensor], output: Any) -> tuple[Likelihood, str]:
    """The likelihood of a transformers model's output, and what one item is.

    Raises:
        HoldfastError: a head whose likelihood is not known.
    """
    logits = getattr(output, "logits", None)
    if logits is not None and is_ctc(model):
        return _recognised(model, batch, logits), "utterance"
    if logits is not None and logits.dim() == 2:
        return _example(bare(model), batch, logits), "example"
    if logits is not None and logits.dim() == 3:
        return _position(model, batch, logits), "token"
    shape = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
    raise HoldfastError(
        f"{type(bare(model)).__name__} returns {shape}, so its loss is not known",
        wanted="logits (batch, classes) or (batch, positions, classes)",
        causes=["an encoder without a head", "a head that Holdfast does not know"],
        remedy="pass forward_loss=..., which returns (logits, labels), (outputs, targets) or a likelihood",
    )


def from_user(returned: Any) -> Likelihood:
    """The likelihood of what a `forward_loss` returned.

    Raises:
        HoldfastError: none of the forms it may return.
    """
    if isinstance(returned, Likelihood):
        return returned
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Tensor):
        first, second = returned
        if first.dim() == 0:
            return Unknown(first, int(second))
        if isinstance(second, Tensor) and second.is_floating_point() and first.shape == second.shape:
            return Gaussian(first, second)
        if isinstance(second, Tensor) and first.dim() == 2 and second.dim() == 1 and not second.is_floating_point():
            return Categorical(first, second)
    got = [getattr(part, "shape", part) for part in returned] if isinstance(returned, tuple) else type(returned)
    raise HoldfastError(
        f"forward_loss returned {got}",
        wanted="(logits (items, classes), integer labels (items,)), (outputs, float targets of the same shape), "
        "(summed loss, number of items), or one of holdfast.likelihoods",
    )


def _recognised(model: nn.Module, batch: Mapping[str, Tensor], logits: Tensor) -> Likelihood:
    framed = frames_of(model, batch)
    config: Any = bare(model).config
    frames = torch.full((len(logits),), logits.shape[1]) if framed is None else framed[0]
    return CTC(logits, batch.get("labels"), frames, blank=int(config.pad_token_id))


def _example(model: Any, batch: Mapping[str, Tensor], logits: Tensor) -> Likelihood:
    labels = batch.get("labels")
    kind = problem_type(model, labels)
    if kind == "single_label_classification":
        rows = torch.arange(len(logits), device=logits.device)
        return Categorical(logits, None if labels is None else labels.flatten(), sequence=rows)
    if kind == "regression":
        return Gaussian(logits, None if labels is None else numbers(labels).reshape(logits.shape))
    return Bernoulli(logits, None if labels is None else labels.reshape(logits.shape))


def _position(model: nn.Module, batch: Mapping[str, Tensor], logits: Tensor) -> Likelihood:
    shifted, mask, labels = is_causal(model), batch.get("attention_mask"), None
    if shifted or batch.get("labels") is not None:
        labels = scored_mask(batch, shifted=shifted)[0]
        scored = labels.ne(IGNORED)
    else:
        scored = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device) if mask is None else mask.ne(0)
    # Prompt tuning puts virtual tokens in front, which predict nothing that is scored.
    logits = logits[:, logits.shape[1] - scored.shape[1] :]
    rows = torch.arange(len(scored), device=scored.device)[:, None].expand_as(scored)
    labels = None if labels is None else labels.flatten()
    return Categorical(logits.flatten(0, 1), labels, scored.flatten(), rows.flatten())
