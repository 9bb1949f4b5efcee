"""The model as it was pre-trained, for a while: adapters off, eval mode, everything restored afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from holdfast.errors import HoldfastError

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
    disable = getattr(model, "disable_adapter", None)
    if disable is None:
        yield
        return
    check_base(model)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with disable():
            yield
    finally:
        for parameter, flag in flags.items():  # PEFT turns frozen adapter weights trainable on the way back
            parameter.requires_grad_(flag)


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
