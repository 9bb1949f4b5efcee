"""Choosing one tensor's entries by themselves, as scopes "tensor" and "row" allow."""

from functools import partial

import torch
from torch import Tensor, nn

from holdfast.sift.config import OWN, SiftConfig
from holdfast.sift.entries import Entries
from holdfast.sift.lazy import FirstBackward
from holdfast.sift.picking import highest
from holdfast.sift.scores import score_of, scores
from holdfast.sift.sizes import as_rows, sizes

Target = tuple[nn.Module, str, Entries]  # a base layer, "weight" or "bias", the entries in it


def prepare(config: SiftConfig, targets: list[Target]) -> None:
    """Give every tensor its number of entries; choose those that need no gradient; say who chooses the others.

    The first backward pass does, where one batch within each tensor or row decides and there is one process. All
    else is left to `holdfast.sift.selection.select`, and until then k is what it would be without competition.
    """
    counts = sizes(config, {e.place.name: as_rows(module, name, e.place.tensor) for module, name, e in targets})
    for module, parameter, entries in targets:
        name = entries.place.name
        entries.resize(counts[name])
        if not isinstance(config.score, str) or config.score.startswith(OWN) or config.scope == "global":
            continue
        if entries.place.tensor.is_meta:  # a model without weights, to be counted
            continue
        pick = partial(_pick, config, module, parameter, name, counts[name])
        if not score_of(config.score).gradient:
            with entries.place.apart() as base:
                indices = pick(None, base)
            entries.move(indices)
        elif config.batches == 1:
            entries.chooser = FirstBackward(entries, pick)


def _pick(
    config: SiftConfig, module: nn.Module, parameter: str, name: str, count: int, gradient: Tensor | None, base: Tensor
) -> Tensor:
    """(count,) flat indices of the highest scores, in the tensor or in each of its rows."""
    score = score_of(config.score)
    mean = None if gradient is None else gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    mean = mean.square() if mean is not None and score.squared else mean
    return highest(config.scope, module, parameter, scores(score, mean, base, name, config.seed), count)
