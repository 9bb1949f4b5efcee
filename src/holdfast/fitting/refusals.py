"""What can't be brought inside a budget by shrinking its shift, and why; told before anything is changed."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.pretrained import CHANGES_BASE, check_unmerged

WHOLE = "merge it, model.merge_and_unload().save_pretrained(DIR), and fit DIR as a whole model"


def _starts_elsewhere(config: Any) -> bool:
    return str(getattr(config, "init_lora_weights", "")).lower().startswith(CHANGES_BASE)


# What PEFT's configuration says -> why it is refused, and what to do instead.
REASONS: list[tuple[Callable[[Any], Any], str, str]] = [
    (
        lambda config: getattr(config, "use_dora", False),
        "it is a DoRA adapter, whose magnitudes make the shift no multiple of what would be scaled",
        WHOLE,
    ),
    (
        _starts_elsewhere,
        "it started from a part of the pre-trained weights, which scaling it would take away",
        "save it as a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...), as PEFT says",
    ),
    (
        lambda config: getattr(config, "modules_to_save", None),
        "it holds modules that were trained whole (modules_to_save), which no anchor of the layers prices",
        "train without modules_to_save, or fit what is left when they are taken out of the adapter",
    ),
    (
        lambda config: (
            getattr(config, "bias", "none") != "none"
            or getattr(config, "lora_bias", False)
            or getattr(config, "biases", False)
        ),
        "it trained biases, which move the model at no price that an anchor knows",
        "train without them (bias='none')",
    ),
    (
        lambda config: getattr(config, "trainable_token_indices", None),
        "it trained single tokens' embeddings, which no anchor of the layers prices",
        "train without trainable_token_indices",
    ),
]


def check_adapters(model: Any) -> None:
    """Raise HoldfastError for an active adapter that holds more than shifts of weights, or another kind of shift."""
    check_unmerged(model, "their shift is no longer apart from the weights")
    active = getattr(model, "active_adapters", [])
    for name, config in getattr(model, "peft_config", {}).items():
        if name not in (active() if callable(active) else active):
            continue
        for holds, why, remedy in REASONS:
            if holds(config):
                raise HoldfastError(f"this adapter can't be scaled into a budget: {why}", remedy=remedy)


def check_anchor(anchor: Anchor, *, measured: bool) -> None:
    """Raise HoldfastError for an anchor that can't say what a finished shift costs.

    Args:
        anchor: to fit by.
        measured: whether source data are there, so that the budget need not be in the anchor's own unit.
    """
    if anchor.space != "weights":
        raise HoldfastError(
            "this anchor was measured on an adapter's own parameters at their start, and a finished adapter does not "
            "say where it started",
            remedy="measure one of the weights: holdfast anchor without --space adapter",
        )
    kinds = {type(curvature) for curvature in anchor.curvatures.values()}
    for kind in kinds:
        if not kind.squares:
            raise HoldfastError(
                f"curvature {anchor.kind!r} prices the size of a move, not its square: no forecast in nats",
                remedy="measure an anchor of another curvature, kronecker for instance",
            )
        if not kind.forecasts and not measured:
            raise HoldfastError(
                f"curvature {anchor.kind!r} predicts nothing, so nothing says where the budget is",
                remedy="pass source data, on which forgetting is then measured, or an anchor that forecasts",
            )


def check_reference(model: nn.Module, anchor: Anchor, reference: Mapping[str, Tensor], layers: Any) -> list[str]:
    """The layers of a wholly tuned model that have moved since the reference.

    Raises:
        HoldfastError: a reference that is not the anchored model, another architecture, layers without curvature.
    """
    for name, weight in reference.items():
        if name in anchor.weights and not anchor.is_at(name, weight):
            raise anchor.foreign(f"{name}.weight differs from the anchored weight")
        if name not in layers or layers[name].weight.shape != weight.shape:
            raise HoldfastError(
                f"the tuned model has no layer {name!r} of shape {tuple(weight.shape)}",
                causes=["it was tuned from another base model"],
                remedy="name the base model that it was tuned from",
            )
    absent = [name for name in anchor.weights if name not in reference]
    if absent:
        raise anchor.foreign(f"the anchored layer {absent[0]!r} is not in the reference")
    moved = [n for n, weight in reference.items() if not torch.equal(weight.to(layers[n].weight), layers[n].weight)]
    unpriced = [name for name in moved if name not in anchor.curvatures]
    if unpriced:
        raise unknown_price(unpriced)
    return moved


def unknown_price(names: list[str]) -> HoldfastError:
    """The error for tensors that moved and that the anchor has no curvature of."""
    return HoldfastError(
        f"{len(names)} tensors of the tuned model moved, and the anchor has no price for them: "
        f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}",
        causes=[
            "it was trained with more than the layers that the anchor was measured on (norms, biases, embeddings)"
        ],
        remedy='measure the anchor with targets that include them, where they are layers (".*" takes every one)',
    )
