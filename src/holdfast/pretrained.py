"""The model as it was pre-trained, for a while: adapters off, eval mode, everything restored afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from holdfast.errors import HoldfastError

FSDP, ZERO_3 = "FSDP", "ZeRO stage 3"  # what shards parameters
WHOLE = {FSDP: "train under DDP (torchrun without fsdp)", ZERO_3: "use ZeRO stage 1 or 2"}
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of PEFT's init_lora_weights


@contextmanager
def at_anchor(model: nn.Module) -> Iterator[None]:
    """The model as it was pre-trained, for measuring: adapters off, eval mode, nothing requires a gradient.

    Training modes, gradient flags, adapter state and random states are restored. Raises HoldfastError for adapters
    that are merged or whose initialisation changed the base weights.
    """
    with _still(model), adapters_off(model):
        yield


@contextmanager
def at_start(model: nn.Module, moving: Iterable[nn.Parameter] = ()) -> Iterator[None]:
    """The model with its adapters as they are, for measuring them: eval mode, only `moving` requires a gradient.

    Everything is restored as after `at_anchor`. Raises HoldfastError for adapters that are merged: their own
    parameters are then out of use.
    """
    check_unmerged(model, "their own parameters are out of use")
    with _still(model):
        for parameter in moving:
            parameter.requires_grad_(True)
        yield


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; modes, gradient flags and random states are restored."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), evaluating(model):
        try:
            model.requires_grad_(False)
            yield
        finally:
            for parameter, flag in flags.items():
                parameter.requires_grad_(flag)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The base model's function, whatever adapters are on it; see `at_anchor` for what is refused."""
    if getattr(model, "disable_adapter", None) is None:
        yield
        return
    check_base(model)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with _disabled(model):
            yield
    finally:
        for parameter, flag in flags.items():  # PEFT turns frozen adapter weights trainable on the way back
            parameter.requires_grad_(flag)


@contextmanager
def _disabled(model: Any) -> Iterator[None]:
    """PEFT's own way; for prompts and prefixes on heads that do not generate it fails, and the base stands in."""
    prompts = getattr(model.active_peft_config, "is_prompt_learning", False)
    if not prompts or hasattr(model, "prepare_inputs_for_generation"):
        with model.disable_adapter():
            yield
        return
    before = model.__dict__.get("forward")
    model.forward = model.base_model.forward
    try:
        yield
    finally:
        del model.forward
        if before is not None:
            model.forward = before


def check_base(model: nn.Module) -> None:
    """Raise HoldfastError where the base weights under the adapters are not the pre-trained ones."""
    check_unmerged(model, "the pre-trained model is not there")
    for config in getattr(model, "peft_config", {}).values():
        initial = str(getattr(config, "init_lora_weights", "")).lower()
        if initial.startswith(CHANGES_BASE):
            raise HoldfastError(
                f"init_lora_weights={initial!r} changes the base weights, so the model without its adapter is not "
                "the pre-trained one",
                remedy="use the model of before the adapter was injected, or the default initialisation",
            )


def check_unmerged(model: nn.Module, consequence: str) -> None:
    """Raise HoldfastError where adapters are merged into the base weights."""
    if any(getattr(module, "merged", False) for module in model.modules() if hasattr(module, "base_layer")):
        raise HoldfastError(
            f"adapters are merged into the base weights, so {consequence}",
            remedy="call model.unmerge_adapter() first",
        )


def check_whole(model: nn.Module, who: str, remedy: str | None = None) -> None:
    """Raise HoldfastError where parameters are shards: by FSDP of either version, other DTensors, or ZeRO stage 3."""
    # By name and by mark: neither library need be installed, and importing torch's takes its time.
    if any(_is_a(module, "FullyShardedDataParallel") for module in model.modules()):
        raise sharded(who, FSDP, remedy)
    for parameter in model.parameters():
        if _is_a(parameter, "DTensor") or hasattr(parameter, "ds_id"):
            raise sharded(who, ZERO_3 if hasattr(parameter, "ds_id") else FSDP, remedy)


def _is_a(thing: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(thing).__mro__)


def sharded(who: str, how: str, remedy: str | None = None) -> HoldfastError:
    """The error for parameters that no rank holds whole; `who` reads them, in the plural."""
    return HoldfastError(f"{who} read whole parameters, and {how} shards them", remedy=remedy or WHOLE[how])


@contextmanager
def teaching(model: nn.Module) -> Iterator[None]:
    """The model as teacher: adapter off, no dropout."""
    with evaluating(model), adapters_off(model):
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; every module's own training mode is restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
