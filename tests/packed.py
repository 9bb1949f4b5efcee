"""Bases of packed weights, and LoRA on them."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from networks import NETWORKS
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from holdfast.anchor import Anchor

NETWORK = NETWORKS["llama"]
TARGETS = ["q_proj", "v_proj", "down_proj"]
LEVELS = 15  # of 4 bits, around zero


class Packed(nn.Linear):
    """Two 4-bit numbers to a byte, with one scale for each row."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, dtype=plain.weight.dtype)
        scale = plain.weight.detach().abs().amax(dim=1, keepdim=True) / (LEVELS // 2)
        levels = (plain.weight.detach() / scale).round().add(LEVELS // 2).to(torch.uint8)
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter(levels[:, ::2] | (levels[:, 1::2] << 4), requires_grad=False)

    def unpacked(self) -> Tensor:
        """The weight that it computes with, (out, in)."""
        levels = torch.stack([self.weight & LEVELS, self.weight >> 4], dim=2).flatten(1)
        return (levels.to(self.scale.dtype) - LEVELS // 2) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.unpacked())


def replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """The model with its targets made anew."""
    for name, module in list(model.named_modules()):
        owner, _, leaf = name.rpartition(".")
        if leaf in TARGETS:
            setattr(model.get_submodule(owner), leaf, make(module))
    return model


def packed(seed: int = 0) -> nn.Module:
    """The network with packed weights; another seed is another network."""
    model = NETWORK.build()
    if seed:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return replaced(model, Packed)


def unpacked(model: nn.Module) -> nn.Module:
    """The same function with plain weights."""

    def plain(module: Any) -> nn.Module:
        made = nn.Linear(module.in_features, module.out_features, bias=False, dtype=torch.float64)
        made.weight.data = module.unpacked()
        return made

    return replaced(copy.deepcopy(model), plain)


def adapted(model: nn.Module, *, seed: int = 3, **settings: Any) -> PeftModel:
    """LoRA away from its start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, **settings))
    found.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in found.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(found.dtype)
            parameter.requires_grad_(True)
    return found


def anchor_of(model: nn.Module, **options: Any) -> Anchor:
    """On the network's own data."""
    return Anchor.estimate(model, NETWORK.batches(2), **({"targets": TARGETS, "progress": False} | options))
