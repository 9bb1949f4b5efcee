"""Sums of SIFT adapters: what one adds, another can take away."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.sift.config import SiftConfig
from holdfast.sift.entries import Entries
from holdfast.sift.finding import Found, entries_of

WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "biases")  # the targets


def add_weighted(model: Any, parts: Sequence[tuple[str, float]], name: str) -> dict[str, int]:
    """Make a further adapter, a weighted sum of SIFT adapters that are on the model.

        increment = sum_i weight_i increment_i,   over the union of their entries

    An increment is how far an entry is from the base; entries that an adapter does not have count as 0. Sums are taken
    in float64 and rounded once, so A + B - B has the values of A to the bit for float32 values of usual size, and base
    values where only B had entries. The same adapter may come several times. What is active stays active.

    Args:
        model: a PeftModel.
        parts: names of adapters on it, and their weights.
        name: of the new one.

    Returns:
        Canonical name of the tensor -> entries of the new adapter.

    Raises:
        HoldfastError: no such adapter, one of another method or with modules_to_save, entries that are not chosen,
            weights that are not finite, or a name that is taken.
    """
    configs = {adapter: _config(model, adapter) for adapter, _ in parts}
    _check(model, parts, name, configs)
    held = {adapter: entries_of(model, adapter) for adapter in configs}
    _check_chosen(held)
    names = list(dict.fromkeys(tensor for adapter in held for tensor in held[adapter]))
    unions = {
        tensor: _union(
            [(weight, held[adapter][tensor].entries) for adapter, weight in parts if tensor in held[adapter]]
        )
        for tensor in names
    }
    _add(model, list(configs.values()), names, name, sum(len(indices) for indices, _ in unions.values()))
    for tensor, one in entries_of(model, name).items():
        nothing = one.entries.indices[:0].long()
        indices, increments = unions.get(tensor, (nothing, nothing.double()))
        _set(one.entries, indices, increments)
    return {tensor: len(indices) for tensor, (indices, _) in unions.items()}


def _union(parts: list[tuple[float, Entries]]) -> tuple[Tensor, Tensor]:
    """(k,) ascending indices and (k,) float64 increments."""
    indices = torch.cat([entries.indices.long() for _, entries in parts])
    scaled = torch.cat([weight * _increments(entries) for weight, entries in parts])
    union, place = torch.unique(indices, return_inverse=True)
    return union, scaled.new_zeros(len(union)).index_add_(0, place, scaled)


def _increments(entries: Entries) -> Tensor:
    return entries.values.detach().double() - entries.at_base().double()


def _set(entries: Entries, indices: Tensor, increments: Tensor) -> None:
    entries.chooser = None
    entries.move(indices)
    with torch.no_grad():
        entries.values.copy_(entries.at_base().double() + increments)
    entries.write()


def _add(model: Any, configs: list[SiftConfig], names: list[str], name: str, entries: int) -> None:
    """The new adapter, its entries still to be set."""
    first = configs[0]
    config = copy.deepcopy(first)
    if any(getattr(one, field) != getattr(first, field) for one in configs for field in WHERE):
        layers, biases = [one.rpartition(".")[0] for one in names], any(one.endswith(".bias") for one in names)
        config.target_modules, config.exclude_modules = set(layers), None  # type: ignore[assignment]
        config.layers_to_transform, config.layers_pattern, config.biases = None, None, biases
    if any(one.decay_to != first.decay_to for one in configs):
        config.decay_to = "zero"
    config.density, config.count, config.scope, config.refresh = None, max(1, entries), "tensor", 0
    model.add_adapter(name, config)


def _config(model: Any, adapter: str) -> SiftConfig:
    known: Mapping[str, Any] = getattr(model, "peft_config", {})
    if adapter not in known:
        raise HoldfastError(
            f"no adapter is called {adapter!r}", wanted=f"one of {', '.join(known)}" if known else "a PEFT model"
        )
    if not isinstance(known[adapter], SiftConfig):
        raise HoldfastError(
            f"the adapter {adapter!r} is no SIFT adapter: {type(known[adapter]).__name__}",
            remedy="combine SIFT adapters; PEFT's own add_weighted_adapter combines LoRA",
        )
    return known[adapter]


def _check(model: Any, parts: Sequence[tuple[str, float]], name: str, configs: Mapping[str, SiftConfig]) -> None:
    if not parts:
        raise HoldfastError("no adapters to combine", remedy="name at least one")
    if name in model.peft_config:
        raise HoldfastError(f"an adapter is called {name!r} already", remedy="choose another name")
    for adapter, weight in parts:
        if not torch.isfinite(torch.tensor(weight)):
            raise HoldfastError(f"the weight of {adapter!r} is {weight}", wanted="a finite number")
        if configs[adapter].modules_to_save:
            raise HoldfastError(
                f"the adapter {adapter!r} holds whole modules beside its entries: "
                f"{', '.join(configs[adapter].modules_to_save or [])}",
                wanted="adapters of entries alone, whose sums are known",
            )


def _check_chosen(held: Mapping[str, Mapping[str, Found]]) -> None:
    for adapter, own in held.items():
        for tensor, one in own.items():
            if not one.entries.chosen:
                raise HoldfastError(
                    f"the entries of {tensor!r} in adapter {adapter!r} are not chosen yet",
                    remedy="train the adapter first",
                )
