"""The interface of our adapters' tuners: finding the layers, putting blocks beside them, sharing and saving them."""

import re
from abc import abstractmethod
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from holdfast.adapters.adapted_layer import AFTER, AdaptedLayer, no_merging
from holdfast.adapters.placement import (
    Site,
    attention_site,
    feed_forward_site,
    is_causal,
    layer_number,
    layer_pattern,
    width_of,
)
from holdfast.adapters.saved_names import (
    check_complete,
    check_hidden,
    check_name,
    hidden_by_names,
    marker,
    with_old_names,
    within_block,
)
from holdfast.errors import HoldfastError

# Place -> how it is found, and whether a block there takes the sublayer's input.
PLACES = {
    "attention": (attention_site, False),
    "feed_forward": (feed_forward_site, False),
    "parallel": (feed_forward_site, True),
}


class AdaptedModel(BaseTuner):
    """Puts blocks beside a model's transformer layers; all of PEFT's verbs but merging work on it."""

    tuner_layer_cls: type[AdaptedLayer]
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # as PEFT declares it

    @abstractmethod
    def places(self, config: Any) -> list[str]:
        """Where in a layer blocks go: "layer" (after it), "attention", "feed_forward", "parallel"."""

    @abstractmethod
    def block(self, config: Any, width: int, causal: bool) -> nn.Module:
        """A new block for a layer of that width."""

    @abstractmethod
    def causal(self, config: Any, name: str, layer: nn.Module, model: nn.Module) -> bool:
        """Whether the layer's block must see the past only."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, for the layers that the model has.

        Raises:
            HoldfastError: no layers, layers without the sublayers asked for, or a name that no adapter can have.
        """
        check_name(adapter_name)
        config: Any = self.peft_config[adapter_name]
        if config.target_modules is None:
            config.target_modules = layer_pattern(model)
        self._shared: dict[str, tuple[int, nn.Module]] = {}
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._shared = {}
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        if self.tuner_layer_cls.in_time:
            turn_cache_off(model)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> bool:
        """Targets, less what is excluded, trained as a copy, or of another layer number."""
        if key.endswith(".base_layer") or any(
            key == name or key.endswith(f".{name}") for name in peft_config.modules_to_save or ()
        ):
            return False
        if not _names(peft_config.target_modules, key) or _names(peft_config.exclude_modules, key):
            return False
        numbers = peft_config.layers_to_transform
        return numbers is None or layer_number(key) in ([numbers] if isinstance(numbers, int) else numbers)

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """Nothing to warn of: no weight of the model changes."""

    def _check_merge_allowed(self) -> None:
        raise no_merging()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """A layer for another; PEFT's own looks for a weight in it to place adapters beside."""
        setattr(parent, child_name, new_module)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, AdaptedLayer) else None
        base: nn.Module = target if layer is None else layer.base_layer
        width = width_of(current_key, base, getattr(self.model, "config", None))
        causal = self.causal(peft_config, current_key, base, self.model)
        places = self.places(peft_config)
        held = {} if layer is None else layer.sites
        sites = {place: held.get(place) or found_site(place, current_key, base) for place in places if place != AFTER}
        blocks = {place: self._block(peft_config, place, width, causal, like(base)) for place in places}
        if layer is None:
            layer = self.tuner_layer_cls(base)
            self._replace_module(parent, target_name, layer, base)
        layer.add(adapter_name, blocks, sites, {place for place in sites if PLACES[place][1]})

    def _block(self, config: Any, place: str, width: int, causal: bool, beside: Tensor | None) -> nn.Module:
        """A block on the layer's device and in its dtype; the one that there is, where layers share it."""
        if config.shared and place in self._shared:
            shared_width, block = self._shared[place]
            if shared_width != width:
                raise HoldfastError(
                    f"layers of widths {shared_width} and {width} can't share a block", remedy="set shared=False"
                )
            return block
        block = self.block(config, width, causal)
        if beside is not None and not any(p.is_meta for p in block.parameters()):
            block = block.to(beside.device, beside.dtype)
        self._shared[place] = width, block
        return block

    @classmethod
    def _own(cls, model: nn.Module, config: Any, adapter: str) -> dict[str, Tensor]:
        """An adapter's parameters by their names in the model; those of a shared block by each of its names."""
        held: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        held = super()._get_adapter_state_dict(model, config, adapter, held, [])
        mark = marker(cls.tuner_layer_cls.adapter_layer_names[0], adapter)
        return {key: parameter.detach() for key, parameter in held.items() if mark in key}

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """As PEFT's, with what it takes for another adapter's; a shared block is saved once, under its first name.

        Raises:
            HoldfastError: PEFT took something out of a state that is not the model's own.
        """
        found = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        own = cls._own(model, config, adapter_name)
        hidden = hidden_by_names(own, found, unwanted_adapter_names) if state_dict else []
        if hidden:
            check_hidden(hidden, state_dict, dict(model.named_parameters(remove_duplicate=False)))
            found |= {key: own[key] for key in hidden}
        if not config.shared:
            return found
        first: dict[str, str] = {}
        for key in [*own, *found]:  # the model's order: what was hidden is in its place
            if key in found:
                first.setdefault(cls._within(key, adapter_name), key)
        return {key: found[key] for key in first.values()}

    @classmethod
    def _within(cls, key: str, adapter: str) -> str:
        return within_block(key, cls.tuner_layer_cls.adapter_layer_names[0], adapter)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """A parameter's name in a file: PEFT's removal looks at the end only, and a block's has the name before."""
        blocks = cls.tuner_layer_cls.adapter_layer_names[0]
        if marker(blocks, adapter_name) in key:
            return key.replace(marker(blocks, adapter_name), f".{blocks}.", 1)
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """As PEFT's; a block that layers share is given to all of them.

        Raises:
            HoldfastError: a parameter of the adapter that the file lacks.
        """
        own = cls._own(model, config, adapter_name)
        found = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        found = with_old_names(found, own, cls.tuner_layer_cls.adapter_layer_names[0], adapter_name)
        if config.shared:
            saved = {cls._within(key, adapter_name): found[key] for key in own if key in found}
            for key in own:
                if cls._within(key, adapter_name) in saved:
                    found.setdefault(key, saved[cls._within(key, adapter_name)])
        check_complete(adapter_name, own, found)
        return found


def found_site(place: str, name: str, layer: nn.Module) -> Site:
    """Where in a layer a place is.

    Raises:
        HoldfastError: its form is not known.
    """
    site = PLACES[place][0](layer)
    if site is None:
        raise HoldfastError(
            f"{name!r} ({type(layer).__name__}) has no {place.replace('_', ' ')} sublayer of a known form",
            remedy="put the adapter after the whole layer: position (style) 'layer'",
        )
    return site


def _names(targets: Any, key: str) -> bool:
    if not targets:
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, key) is not None
    return any(key == target or key.endswith(f".{target}") for target in targets)


def like(module: nn.Module) -> Tensor | None:
    """A tensor in floating point on the module's device, None where it has none."""
    return next((p for p in module.parameters() if p.is_floating_point() and p.dtype.itemsize > 1), None)


def turn_cache_off(model: nn.Module) -> None:
    """Generation computes whole sequences from now on: a cache does not hold what convolutions need."""
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        getter = getattr(config, "get_text_config", None)  # a model of text and more has one for its text
        for one in (config, None if getter is None else getter(decoder=True)):
            if getattr(one, "use_cache", None):
                setattr(one, "use_cache", False)  # noqa: B010


def is_causal_layer(layer: nn.Module, model: Any) -> bool:
    """Whether the layer is a causal decoder's, as it says or else as the model does."""
    config = getattr(model, "config", None)
    generates = bool(getattr(model, "can_generate", lambda: False)())
    encoder_too = bool(getattr(config, "is_encoder_decoder", False))
    return is_causal(layer, bool(getattr(config, "is_decoder", False)) or (generates and not encoder_too))
