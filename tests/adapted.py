"""Every way of making a network trainable: each tuner of the catalogue, and LoRA's harder settings."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from networks import NETWORKS, Network, matrix
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from holdfast import catalogue
from holdfast.sift import SiftConfig
from holdfast.sift.layer import SiftLayer
from holdfast.targets import base_layers, select
from holdfast.tuners.options import chosen

RANK, ALPHA = 2, 3
# PEFT offers PiSSA for linear layers alone.
LINEAR = ("mlp", "twice", "llama", "bert-tokens", "bert-sequence", "reentrant", "recomputed")


def lora(network: Network, model: nn.Module, **settings: Any) -> PeftModel:
    """LoRA on the network's own targets."""
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(select(model, network.targets))} | settings
    return get_peft_model(model, LoraConfig(**settings))


def patterns(network: Network, model: nn.Module) -> PeftModel:
    """One layer with a rank and a scaling of its own."""
    first = min(select(model, network.targets))
    return lora(network, model, rank_pattern={first: 3}, alpha_pattern={first: 5})


def two(network: Network, model: nn.Module) -> PeftModel:
    """Two adapters of different rank, both active; the second on some layers only."""
    model = lora(network, model)
    names = sorted(select(model, network.targets))
    model.add_adapter("extra", LoraConfig(r=1, lora_alpha=2, target_modules=names[:1]))
    model.base_model.set_adapter(["default", "extra"])
    return model


def pissa(network: Network, model: nn.Module) -> PeftModel:
    """Principal directions move from the weight into the adapter; PEFT computes them in float32 only."""
    return lora(network, model.float(), init_lora_weights="pissa").double()


def sift(network: Network, model: nn.Module, **settings: Any) -> PeftModel:
    """A quarter of each weight's entries, drawn at random."""
    drawn = {"target_modules": sorted(select(model, network.targets)), "density": 0.25, "score": "random"}
    return get_peft_model(model, SiftConfig(**drawn | settings))


def sifts(network: Network, model: nn.Module) -> PeftModel:
    """Two SIFT adapters, both active: absolute entries and increments, whose places meet."""
    model = sift(network, model, density=0.4)
    names = sorted(select(model, network.targets))
    few = SiftConfig(target_modules=names[:1], density=0.4, score="random", seed=1, decay_to="start")
    model.add_adapter("extra", few)
    model.base_model.set_adapter(["default", "extra"])
    return model


def _tuned(name: str) -> Callable[[Network, nn.Module], nn.Module]:
    tuner = catalogue.tuner(name)
    top = {"rank": RANK, "alpha": ALPHA} if tuner.sizes == ("rank",) else {}
    return lambda network, model: chosen(tuner, {}, **top).prepare(model, network.targets)


FLAVOURS = {name: _tuned(name) for name in catalogue.names("tuner") if catalogue.tuner(name).shifts}
FLAVOURS |= {"patterns": patterns, "two": two, "pissa": pissa, "sift": sift, "sifts": sifts}
ANYWHERE = ("full", "sift", "sifts")  # ways that PEFT's LoRA on a layer does not limit
CASES = [
    (flavour, network)
    for flavour in FLAVOURS
    for network in NETWORKS
    if (NETWORKS[network].lora or flavour in ANYWHERE) and (network in LINEAR or flavour != "pissa")
]


def adapt(flavour: str, network: Network) -> nn.Module:
    """A fresh network, made trainable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's remarks on tied weights and missing configurations
        return FLAVOURS[flavour](network, network.build())


def move(model: nn.Module, size: float = 0.3, seed: int = 7) -> nn.Module:
    """Add noise to whatever is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(size * noise.to(parameter.dtype))
    for layer in model.modules():
        if isinstance(layer, SiftLayer):
            layer.settle()  # as after an optimizer's step
    return model


def effective_shifts(model: nn.Module, network: Network) -> dict[str, Tensor]:
    """Layer name -> weight now minus weight of the network as built, (out, in), through PEFT's own merging."""
    merged = copy.deepcopy(model)
    merged = merged.merge_and_unload() if isinstance(merged, PeftModel) else merged
    born, now = base_layers(network.build()), base_layers(merged)
    return {
        name: matrix(layer, (now[name].weight - layer.weight).detach())
        for name, layer in born.items()
        if name in select(merged, network.targets)
    }
