"""Adapters at their start, measured, and plain autograd over what they train."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from networks import IGNORED, NETWORKS, Batch, Network
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from torch import Tensor, nn

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.parts import parts_in

LLAMA = NETWORKS["llama"]
CAUSAL = TaskType.CAUSAL_LM
LINEAR = ["q_proj", "v_proj"]
# Methods that train more than the weights of layers which see the batch's rows.
PLAIN: dict[str, Callable[[], Any]] = {
    "prefix": lambda: PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=3),
    "prefix-projected": lambda: PrefixTuningConfig(
        task_type=CAUSAL, num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=4
    ),
    "prompt": lambda: PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=5),  # as long as the longest sequence
    "p-tuning": lambda: PromptEncoderConfig(task_type=CAUSAL, num_virtual_tokens=3, encoder_hidden_size=4),
    "ia3": lambda: IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "dora": lambda: LoraConfig(target_modules=LINEAR, r=2, use_dora=True),
    "alora": lambda: LoraConfig(
        task_type=CAUSAL, target_modules=LINEAR, r=2, alora_invocation_tokens=LLAMA.rows[0]["input_ids"][1:2].tolist()
    ),
    "bias": lambda: LoraConfig(target_modules=LINEAR, r=2, lora_bias=True),
    "loha": lambda: LoHaConfig(target_modules=LINEAR, r=2),
    "norms": lambda: LNTuningConfig(target_modules=["input_layernorm"]),
    "adaption-prompt": lambda: AdaptionPromptConfig(task_type=CAUSAL, adapter_len=2, adapter_layers=1),
}


def adapted_by(method: str) -> nn.Module:
    """A Llama under one of those methods."""
    torch.manual_seed(0)
    return get_peft_model(LLAMA.build(), PLAIN[method]()).double()


def batches(network: Network, size: int = 2, **padding: Any) -> list[Batch]:
    """Batches without positions, which prompts leave no place for."""
    return [{n: t for n, t in b.items() if n != "position_ids"} for b in network.batches(size, **padding)]


def estimate(model: nn.Module, network: Network, kind: str = "kronecker", **options: Any) -> Anchor:
    """An anchor of the adapter's own parameters."""
    measured = bool(catalogue.curvature(kind).statistics())
    given: dict[str, Any] = {"forward_loss": network.forward_loss, "progress": False, "curvature": kind} | options
    source = given.pop("source", batches(network))
    return Anchor.estimate(model, source if measured else None, space="adapter", **given)


def slow_squares(network: Network, model: nn.Module, labels: list[Tensor]) -> dict[str, Tensor]:
    """Trainable parameter -> sum over sequences of its squared gradient, over all scored items; plain autograd."""
    model.eval()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    items = 0
    for number, row in enumerate(network.rows):
        logits = _logits(network, model, row)
        loss = F.cross_entropy(logits, labels[number], reduction="sum")
        items += len(labels[number])
        gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += 0 if gradient is None else gradient.square()
    return {name: squares / items for name, squares in total.items()}


def _logits(network: Network, model: nn.Module, row: dict[str, Tensor]) -> Tensor:
    """Of the scored positions of one sequence, whatever virtual tokens stand in front."""
    if network.forward_loss is not None:
        logits, labels = network.forward_loss(model, network.collate([row]))
        return logits[labels != IGNORED]
    logits = model(input_ids=row["input_ids"][None]).logits[0][-len(row["input_ids"]) :]
    shifted = torch.cat([row["labels"][1:], torch.tensor([IGNORED])]) if network.causal else row["labels"]
    return logits[shifted != IGNORED]


def diagonals(anchor: Anchor) -> dict[str, Tensor]:
    """Part name -> the diagonal Fisher, flat."""
    return {name: curvature.tensors()["fisher"].flatten() for name, curvature in anchor.curvatures.items()}


def flat(model: nn.Module, by_parameter: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under the anchor's names, each as a flat matrix (out, in)."""
    places = {id(part.tensor): (name, part) for name, part in parts_in(model, "adapter").items()}
    parameters = dict(model.named_parameters())
    found = {}
    for own, tensor in by_parameter.items():
        name, part = places[id(parameters[own])]
        found[name] = part.matrix(tensor).flatten()
    return found
