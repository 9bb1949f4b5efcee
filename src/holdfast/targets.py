"""Layer names: one name per layer, wrapped or not, and PEFT's grammar of targets over them."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from holdfast.errors import HoldfastError, closest
from holdfast.layers import kind_of

ALL_LINEAR = "all-linear"
Targets = str | Iterable[str]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|base_model\.model\.)+")


def canonical(name: str) -> str:
    """The name the layer has in the bare model: without the prefixes of PEFT, DDP and torch.compile."""
    bare = _WRAPPERS.sub("", name).replace("._orig_mod", "")
    return bare.replace(".base_layer", "").removesuffix(".original_module")


def base_layers(model: nn.Module) -> dict[str, Any]:
    """Canonical name -> module, for every layer of a known kind; adapters' own modules left out."""
    inner: Any = getattr(model, "base_model", None)
    if hasattr(model, "get_base_model") and not hasattr(inner, "peft_config"):
        model = inner  # PEFT's prompt methods stand around the model itself, without a tuner between
    modules = dict(model.named_modules())
    # What each wrapper of PEFT stands around: an adapted layer, or one that is trained as a copy (modules_to_save).
    wrapped = {name: "base_layer" for name, module in modules.items() if hasattr(module, "base_layer")}
    wrapped |= {name: "original_module" for name, module in modules.items() if hasattr(module, "original_module")}
    found = {}
    for name, module in modules.items():
        inside_adapter = any(
            name.startswith(f"{wrapper}.") and not _stands_in(name, f"{wrapper}.{leaf}")
            for wrapper, leaf in wrapped.items()
        )
        if kind_of(module) is None or inside_adapter:
            continue
        found[canonical(name)] = module
    return found


def _stands_in(name: str, wrapped: str) -> bool:
    """Whether a layer is what an adapter stands around, or in it: adapters stand around whole blocks too."""
    return name == wrapped or (wrapped.endswith(".base_layer") and name.startswith(f"{wrapped}."))


def trained_in_place(model: nn.Module) -> dict[str, Any]:
    """Canonical name -> adapter layer, where it trains in the base layer's own weight, which is then not the base's.

    Its `pretrained_weight()` is, a copy or the tensor itself, to be read only.
    """
    return {canonical(name): m for name, m in model.named_modules() if hasattr(m, "pretrained_weight")}


def pretrained_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and pre-trained weight of every layer of a known kind, one after the other, to be read only."""
    around = trained_in_place(model)
    for name, module in base_layers(model).items():
        yield name, around[name].pretrained_weight() if name in around else module.weight


def output_layer(model: Any) -> nn.Module | None:
    """The module that produces the logits, where the model says which it is."""
    getter = getattr(model, "get_output_embeddings", None)
    if getter is None:
        return None
    try:
        return getter()
    except (AttributeError, NotImplementedError):
        return None


def select(model: nn.Module, targets: Targets = ALL_LINEAR) -> dict[str, Any]:
    """The layers that `targets` names, following PEFT's `target_modules`.

    Args:
        model: any module, wrapped by PEFT or not.
        targets: "all-linear" (every linear layer but the output layer), a regular expression that must match
            the whole name, or a list of names or name endings ("q_proj" matches "layers.0.self_attn.q_proj").

    Raises:
        HoldfastError: when nothing matches; the message lists the closest names.
    """
    layers = base_layers(model)
    if not (isinstance(targets, str) and targets.lower() == ALL_LINEAR):
        chosen = matching(targets, layers)
        return {name: module for name, module in layers.items() if name in chosen}
    head = output_layer(model)
    linear = {n: m for n, m in layers.items() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"}
    found = {n: m for n, m in linear.items() if m is not head}
    if not found:
        raise _no_match([str(targets)], layers)
    return found


def matching(targets: Targets, names: Collection[str]) -> set[str]:
    """The names that a regular expression matches as a whole, or that end in one of a list of endings.

    Raises:
        HoldfastError: when nothing matches, or an ending matches nothing; the message lists the closest names.
    """
    if isinstance(targets, str):
        chosen, unmatched = {name for name in names if _fullmatch(targets, name)}, [targets]
    else:
        endings = list(targets)
        ends = {ending: {n for n in names if n == ending or n.endswith(f".{ending}")} for ending in endings}
        chosen = set().union(*ends.values())
        unmatched = [ending for ending, found in ends.items() if not found]
        if chosen and unmatched:
            raise _no_match(unmatched, names)
    if not chosen:
        raise _no_match(unmatched, names)
    return chosen


def _fullmatch(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise HoldfastError(f"targets {pattern!r} is not a regular expression: {error}") from error


def _no_match(targets: list[str], layers: Collection[str]) -> HoldfastError:
    near = {target: closest(target, layers) for target in targets}
    hints = [f"{target!r} is close to: {names}" for target, names in near.items() if names]
    endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
    return HoldfastError(
        f"targets {', '.join(map(repr, targets))} match no layer of the model",
        wanted='"all-linear", a regular expression over whole names, or a list of name endings',
        causes=hints or ["the names belong to another architecture or another version of transformers"],
        remedy=f"use one of the model's own layer names: {', '.join(endings[:30])}",
    )
