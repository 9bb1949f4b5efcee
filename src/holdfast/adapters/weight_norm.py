"""Weight normalisation, which PEFT's merging overlooks: the merged layer is silently the unadapted one.

A weight-normed layer computes its weight from a magnitude and a direction, w = g v / ||v|| (arXiv 1602.07868), at
every forward pass. LoRA and its like add to the computed weight when they merge, and the next pass computes it again.
In wav2vec2 the positional convolution is such a layer; in vocoders (HiFi-GAN, VITS) nearly all are.
"""

import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrize

from holdfast.errors import HoldfastError
from holdfast.layers import is_weight_normed
from holdfast.targets import canonical


def fold_weight_norm(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Make computed weights plain ones, in place, before adapters go on; the function stays bit for bit the same.

    Args:
        model: not yet wrapped.
        names: of layers; those without weight norm are left alone.

    Returns:
        The names of the layers that were changed. A saved state of the model before has other names for their weights.

    Raises:
        HoldfastError: another parametrisation on such a layer's weight.
    """
    folded = []
    for name in names:
        module = model.get_submodule(name)
        if not is_weight_normed(module):
            continue
        new = parametrize.is_parametrized(module, "weight")
        if new and len(cast(Any, module).parametrizations.weight) > 1:
            raise HoldfastError(
                f"the weight of {name!r} is weight-normed and parametrised in another way too",
                remedy="remove the parametrisations, or leave the layer out of the targets",
            )
        trainable = any(p.requires_grad for p in module.parameters())
        with torch.no_grad():
            if new:
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            else:
                torch.nn.utils.remove_weight_norm(module)
        cast(nn.Parameter, module.weight).requires_grad_(trainable)
        folded.append(name)
    return folded


def folded_with_words(model: nn.Module, names: Iterable[str]) -> None:
    """`fold_weight_norm`, with a warning of what it changed."""
    if names := fold_weight_norm(model, sorted(names)):
        warnings.warn(
            f"weight norm was folded into the weights of {', '.join(names)}: the function is the same, but these "
            "layers are saved under other names than in the model they came from",
            stacklevel=3,
        )


def weight_normed_under_adapters(model: nn.Module) -> list[str]:
    """Names of weight-normed layers that carry adapters."""
    return [
        canonical(name)
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and is_weight_normed(module.get_base_layer())
    ]


def check_mergeable(model: nn.Module) -> None:
    """Check that merging the model's adapters will do what they do.

    Raises:
        HoldfastError: adapters on weight-normed layers; the message names them.
    """
    names = weight_normed_under_adapters(model)
    if names:
        raise weight_normed(names)


def weight_normed(names: list[str]) -> HoldfastError:
    """The error for adapters on layers with weight norm."""
    return HoldfastError(
        f"adapters stand on weight-normed layers, whose weight is computed anew at every pass: {', '.join(names)}",
        wanted="plain weights under adapters; merging would silently give the unadapted layers",
        remedy="call holdfast.adapters.weight_norm.fold_weight_norm(model, names) before get_peft_model (Holdfast's "
        "own tuners do), or leave these layers out of target_modules",
    )
