"""What `Anchor.estimate` touches is as it was before, whether it ends well or not."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from adapted import adapt, lora, move
from networks import NETWORKS, Batch, Network
from peft import PeftModel
from torch import nn
from torch.testing import assert_close

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.penalties.distill import Distill

KINDS = catalogue.names("curvature")


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that measuring could leave behind."""
    modules = dict(model.named_modules())
    return {
        "modes": {name: module.training for name, module in modules.items()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "gradients": [name for name, parameter in model.named_parameters() if parameter.grad is not None],
        "hooks": {name: hooks_of(module) for name, module in modules.items() if any(hooks_of(module))},
        "disabled": {n: m.disable_adapters for n, m in modules.items() if hasattr(m, "base_layer")},
        "active": {n: list(m.active_adapters) for n, m in modules.items() if hasattr(m, "base_layer")},
        "random": torch.get_rng_state().tolist(),
    }


def hooks_of(module: nn.Module) -> tuple[int, ...]:
    """How many hooks of each kind a module carries."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return tuple(len(getattr(module, kind)) for kind in kinds)


def unsettled(network: Network) -> nn.Module:
    """Some modules train, one adapter is frozen, another layer's adapter is half frozen."""
    model = move(adapt("two", network)).train()
    parameters = dict(model.named_parameters())
    for name in [name for name in parameters if ".extra." in name]:
        parameters[name].requires_grad_(False)
    next(p for name, p in parameters.items() if "lora_" in name and ".default." in name).requires_grad_(False)
    next(module for module in model.modules() if isinstance(module, nn.Linear)).eval()
    return model


def estimate(network: Network, model: nn.Module, kind: str, batches: Any) -> Anchor:
    """An anchor of any model around the network."""
    source = batches if catalogue.curvature(kind).statistics() else None
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False}
    return Anchor.estimate(model, source, curvature=kind, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_nothing_is_left_behind(kind: str, network: Network) -> None:
    model = unsettled(network)
    before, weights = state(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    estimate(network, model, kind, network.batches(2))
    assert state(model) == before
    assert_close(model.state_dict(), weights, rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_nothing_is_left_behind_by_an_interrupt(network: Network) -> None:
    def interrupted() -> Iterator[Batch]:
        yield network.batches(2)[0]
        raise KeyboardInterrupt

    model = unsettled(network)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        estimate(network, model, "kronecker", interrupted())
    assert state(model) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_an_adapted_model_is_anchored_at_its_base(kind: str, network: Network) -> None:
    adapted = estimate(network, unsettled(network), kind, network.batches(2))
    bare = estimate(network, network.build(), kind, network.batches(2))
    assert adapted.weights == bare.weights
    assert_close(
        {name: curvature.tensors() for name, curvature in adapted.curvatures.items()},
        {name: curvature.tensors() for name, curvature in bare.curvatures.items()},
    )
    adapted.check(network.build())
    bare.check(unsettled(network))


def test_adapters_that_were_off_stay_off() -> None:
    network = NETWORKS["llama"]
    model = unsettled(network)
    model.base_model.disable_adapter_layers()
    before = state(model)
    estimate(network, model, "kronecker", network.batches(2))
    assert state(model) == before


def test_merged_adapters_are_refused_and_stay_merged() -> None:
    network = NETWORKS["llama"]
    model = unsettled(network)
    model.merge_adapter()
    with pytest.raises(HoldfastError, match="unmerge_adapter"):
        estimate(network, model, "kronecker", network.batches(2))
    assert model.base_model.model.model.layers[0].mlp.up_proj.merged


@pytest.mark.parametrize("initial", ["pissa", "olora"])
def test_adapters_that_changed_the_base_weights_are_refused(initial: str) -> None:
    network = NETWORKS["llama"]
    model = lora(network, network.build().float(), init_lora_weights=initial)
    with pytest.raises(HoldfastError, match="changes the base weights"):
        estimate(network, model, "kronecker", network.batches(2))
    with pytest.raises(HoldfastError, match="changes the base weights"):
        Distill(model, network.batches(2), top_k=4, progress=False)


def test_trained_heads_beside_the_adapters_are_anchored_as_they_were() -> None:
    network = NETWORKS["bert-sequence"]
    model: PeftModel = lora(
        network, network.build(), target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    bare = estimate(network, network.build(), "kronecker", network.batches(2))
    bare.check(model)
    adapted = estimate(network, move(model), "kronecker", network.batches(2))
    assert list(adapted.curvatures) == list(bare.curvatures)
