"""A layer of which some entries train in place."""

from collections.abc import MutableMapping
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.sift.entries import Entries, digest
from holdfast.sift.linking import expect_choice, linked
from holdfast.sift.place import Place, check_plain
from holdfast.sift.refusals import check_own

PARAMETERS = ("weight", "bias")


class SiftLayer(nn.Module, BaseTunerLayer):
    """Any layer with a weight, around which entries of its tensors train: y = layer(x; w), w[I] = cast(v).

    The entries are always in the tensor, so the layer runs as it is, hooks and all; only where gradients are wanted
    does its tensor depend on v for the time of a forward pass. Nothing is copied.

    Args:
        base_layer: with a `weight`, and perhaps a `bias`, in floating point.
        places: "weight" and "bias" -> the tensor's place, for those that have entries; shared between layers that
            share the tensor.
    """

    adapter_layer_names = ("sift_weight", "sift_bias")
    other_param_names = ()

    def __init__(self, base_layer: nn.Module, places: dict[str, Place]) -> None:
        super().__init__()
        self.base_layer, self.places = base_layer, places
        self.sift_weight, self.sift_bias = nn.ModuleDict(), nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters = []
        self._active_adapter: list[str] = []
        self.register_load_state_dict_post_hook(_loaded)

    def own(self, parameter: str) -> MutableMapping[str, Entries]:
        """Adapter -> entries of "weight" or "bias", those that this layer keeps and saves."""
        return cast(MutableMapping[str, Entries], getattr(self, f"sift_{parameter}"))

    def add(self, adapter: str, parameter: str, entries: Entries) -> None:
        """Take an adapter's entries on."""
        self.own(parameter)[adapter] = entries
        entries.place.entries[adapter] = entries

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer does, differentiable in the entries that train."""
        check_own(self)
        tensors = self._linked()
        if not tensors:
            return self.base_layer(*args, **kwargs)
        for name in tensors:
            check_plain(self.places[name].tensor)
            expect_choice(self.places[name], compiling=torch.compiler.is_compiling())
        held = self.base_layer._parameters
        before = {name: held[name] for name in tensors}
        held.update(tensors)  # type: ignore[arg-type]  # a tensor in a parameter's place, as functional_call does
        try:
            return self.base_layer(*args, **kwargs)
        finally:
            held.update(before)

    def _linked(self) -> dict[str, Tensor]:
        """The tensors that depend on what trains; up to date, those that don't as well."""
        found = {}
        for name, place in self.places.items():
            if not torch.compiler.is_compiling():
                place.settle()
            training = self._training(place)
            if training:
                found[name] = linked(place.tensor, training)
        return found

    def _training(self, place: Place) -> list[Entries]:
        if self.merged_adapters or self._disable_adapters or not torch.is_grad_enabled():
            return []
        return [entries for entries in place.visible() if entries.values.requires_grad]

    @property
    def weight(self) -> Tensor:
        """The layer's weight, for those who read it past the layer: differentiable in the entries that train."""
        return self._linked().get("weight", cast(Tensor, self.base_layer.weight))

    @property
    def bias(self) -> Tensor:
        """The layer's bias, as `weight`."""
        return self._linked().get("bias", cast(Tensor, self.base_layer.bias))

    def sparse_increments(self, adapter: str) -> tuple[Tensor, Tensor]:
        """One adapter's shift of the weight: (k,) increments, differentiable, and their (k,) flat indices into it.

        The indices are into the weight as it is stored. Without entries in the weight, k is 0.
        """
        entries = self.places["weight"].entries.get(adapter) if "weight" in self.places else None
        if entries is None:
            weight = cast(Tensor, self.base_layer.weight)
            dtype = torch.promote_types(weight.dtype, torch.float32)
            return weight.new_zeros(0, dtype=dtype), torch.zeros(0, dtype=torch.int32, device=weight.device)
        if not entries.chosen:  # the vector that will train all the same, for those who ask what a shift depends on
            return entries.values[:0], entries.indices[:0]
        return entries.increments(), entries.indices

    def pretrained_weight(self) -> Tensor:
        """The weight without any adapter, bit for bit: a copy where entries are in it, else the tensor itself."""
        weight = cast(Tensor, self.base_layer.weight)
        return self.places["weight"].pretrained() if "weight" in self.places else weight.detach()

    def _shown(self) -> list[str]:
        if self.merged_adapters:
            return list(self.merged_adapters)
        return [] if self._disable_adapters else list(self.active_adapters)

    def settle(self) -> None:
        """Let the tensors hold what the adapters' state asks for."""
        for place in self.places.values():
            place.show(self._shown())

    def enable_adapters(self, enabled: bool) -> None:
        """As PEFT's; off, the tensors are the base's, bit for bit."""
        super().enable_adapters(enabled)
        self.settle()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.settle()

    def _get_available_adapters(self) -> set[str]:
        return {adapter for place in self.places.values() for adapter in place.entries}

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self._get_available_adapters())

    def delete_adapter(self, adapter_name: str) -> None:
        """As PEFT's; the base comes back where the adapter was."""
        for place in self.places.values():
            place.forget(adapter_name)
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Make the entries, which are in the tensors already, part of the layer: not a bit changes.

        Raises:
            HoldfastError: with `safe_merge`, entries that are not finite.
        """
        names = [
            name for name in check_adapters_to_merge(self, adapter_names) if name in self._get_available_adapters()
        ]
        for place in self.places.values() if safe_merge else ():
            for entries in (place.entries[name] for name in names if name in place.entries):
                if not torch.isfinite(entries.values).all():
                    raise HoldfastError(
                        f"entries of {place.name!r} are not finite", remedy="do not merge this adapter"
                    )
        self.merged_adapters = [*self.merged_adapters, *names]
        self.settle()

    def unmerge(self) -> None:
        """Let the entries train again; the function is the same."""
        self.merged_adapters = []
        self.settle()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The bare layer, with the entries in it or with the base's bits; PEFT calls this to unload."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        for place in self.places.values():
            place.show(self.merged_adapters if merge else [])
            place.leave()
        return self.base_layer

    def _apply(self, *args: Any, **kwargs: Any) -> "SiftLayer":
        super()._apply(*args, **kwargs)
        for place in self.places.values():
            place.follow(digest)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, place in self.places.items():
            place.reload(f"{prefix}base_layer.{name}" in state_dict)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __repr__(self) -> str:
        return f"sift.{super().__repr__()}"


def _loaded(layer: SiftLayer, _: Any) -> None:
    for place in layer.places.values():
        place.loaded()
