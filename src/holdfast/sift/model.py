"""SIFT as a PEFT tuner."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from holdfast.errors import HoldfastError
from holdfast.pretrained import check_whole
from holdfast.sift.choosing import prepare
from holdfast.sift.config import SiftConfig
from holdfast.sift.entries import Entries
from holdfast.sift.layer import PARAMETERS, SiftLayer
from holdfast.sift.place import Place
from holdfast.sift.refusals import check_target
from holdfast.sift.stepping import await_refresh, follow_optimizers
from holdfast.targets import ALL_LINEAR, base_layers, canonical


class SiftModel(BaseTuner):
    """Puts a SIFT adapter on a model; see `holdfast.SiftConfig`.

        model = get_peft_model(model, SiftConfig(density=0.01))

    Entries are chosen from the first backward pass, where one batch within each tensor or row decides, and before
    training by `holdfast.sift.selection.select` otherwise.

    Beside LoRA on other layers, each adapter with its own name; `save_pretrained` then writes one folder for each:

        inject_adapter_in_model(LoraConfig(target_modules=["q_proj"]), model, "low")
        model = get_peft_model(model, SiftConfig(target_modules=["down_proj"]), "few")
        model.save_pretrained(folder)  # folder/low, folder/few
        ...
        base.load_adapter(folder / "low", "low")  # transformers' own
        model = PeftModel.from_pretrained(base, folder / "few", "few")
    """

    prefix = "sift_"
    tuner_layer_cls = SiftLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # as PEFT declares it

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> PeftConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = ALL_LINEAR
        if peft_config.target_modules == ALL_LINEAR and _places(self.model):
            peft_config.target_modules = _all_linear(self.model)
        return peft_config

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """Nothing to warn of: layers that share a tensor share its entries, and merging writes one tensor."""

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT would pass over `adapter_names` silently: one tensor can't hold another adapter for each row."""
        if kwargs.get("adapter_names") is not None:
            raise HoldfastError(
                "adapter_names asks for an adapter for each row of a batch, and SIFT writes adapters into the weights",
                remedy="one pass for each adapter, after model.set_adapter(name)",
            )
        yield

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's name for sums, which it has for LoRA; ours are elsewhere."""
        raise HoldfastError(
            "add_weighted_adapter does not know SIFT's entries",
            remedy="holdfast.sift.composing.add_weighted(model, [(adapter, weight), ...], name), or `holdfast "
            "combine` for folders",
        )

    def _check_merge_allowed(self) -> None:
        """Always: see `_check_tied_modules`."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; then every tensor gets its number of entries, and those that need no gradient are chosen."""
        check_whole(model, "SIFT's entries")
        config = cast(SiftConfig, self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        found = [
            (layer, parameter, layer.own(parameter)[adapter_name])
            for layer in model.modules()
            if isinstance(layer, SiftLayer)
            for parameter in PARAMETERS
            if adapter_name in layer.own(parameter)
        ]
        _share(model, [entries.place for _, _, entries in found])
        prepare(config, [(layer.base_layer, parameter, entries) for layer, parameter, entries in found])
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
        follow_optimizers()
        await_refresh([entries for _, _, entries in found], config.refresh)

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
        layer = target if isinstance(target, SiftLayer) else None
        name = canonical(current_key)
        base = target if layer is None else layer.base_layer
        check_target(name, base)
        held = {id(place.tensor): place for place in _places(self.model)}
        wanted = [p for p in PARAMETERS[: 2 if peft_config.biases else 1] if getattr(base, p, None) is not None]
        places = {p: held.get(id(getattr(base, p))) or Place(f"{name}.{p}", base, p) for p in wanted}
        if layer is None:
            layer = SiftLayer(base, places)
            self._replace_module(parent, target_name, layer, base)
        layer.places.update(places)
        for parameter, place in places.items():
            if adapter_name not in place.entries:  # a layer that shares it may have them
                layer.add(adapter_name, parameter, Entries(place, relative=peft_config.decay_to == "start"))

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        *rest: Any,
        **kw: Any,
    ) -> dict[str, Tensor]:
        """Values, indices and the base's hash; the base gives `origin` again."""
        layers = [name for name, module in model.named_modules() if isinstance(module, SiftLayer)]
        for name in layers:  # PEFT would save a targeted embedding whole
            for key in [key for key in state_dict if key.startswith(f"{name}.base_layer.")]:
                del state_dict[key]
        kept = [f"{name}.{own}.{adapter_name}." for name in layers for own in SiftLayer.adapter_layer_names]
        return {
            key: tensor
            for key, tensor in state_dict.items()
            if key.startswith(tuple(kept)) and not key.endswith(".origin")
        }


def _places(model: nn.Module) -> list[Place]:
    return [place for layer in model.modules() if isinstance(layer, SiftLayer) for place in layer.places.values()]


def _all_linear(model: nn.Module) -> set[str]:
    """What PEFT's "all-linear" was for the first adapter; it does not see linear layers inside ours."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    output = output.base_layer if isinstance(output, SiftLayer) else output
    linear = (nn.Linear, Conv1D)
    return {n for n, layer in base_layers(model).items() if isinstance(layer, linear) and layer is not output}


def _share(model: nn.Module, places: list[Place]) -> None:
    """Wrap every other layer that holds one of the tensors, so that its use of it counts too."""
    by_tensor = {id(place.tensor): place for place in places}
    wrapped = {id(module.base_layer) for module in model.modules() if isinstance(module, SiftLayer)}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            shared = {p: by_tensor[id(t)] for p, t in child._parameters.items() if id(t) in by_tensor}
            if not shared or id(child) in wrapped or isinstance(parent, SiftLayer):
                continue
            check_target(f"the layer that shares {next(iter(shared.values())).name}", child)
            layer = SiftLayer(child, shared)
            setattr(parent, name, layer)
