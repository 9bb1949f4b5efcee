"""A forward pass with gradients and without chance, in the midst of training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from holdfast.pretrained import evaluating


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Eval mode for a pass whose backward pass comes later, when all modes are restored.

    transformers' layers that checkpoint their activations go on doing so: their second forward pass, within the
    backward pass, then runs in eval mode as the first one did. Recurrent layers without dropout stay in training mode,
    without which cuDNN has no backward pass. A model that calls torch.utils.checkpoint by itself decides its own mode
    there: with dropout inside, its second pass differs from the first.
    """
    training = [module for module in model.modules() if module.training]
    noisy = [module for module in training if not (isinstance(module, nn.RNNBase) and not module.dropout)]
    quiet = set(training).difference(noisy)
    before: dict[Any, Any] = {layer: layer._gradient_checkpointing_func for layer in training if _checkpoints(layer)}
    with evaluating(model), _cacheless(model if before else None):
        for module in (*quiet, *before):
            module.training = True  # its own mode, not its children's
        try:
            for layer, checkpoint in before.items():
                layer._gradient_checkpointing_func = partial(_checkpointed, checkpoint, noisy)
            yield
        finally:
            for layer, checkpoint in before.items():
                layer._gradient_checkpointing_func = checkpoint


@contextmanager
def _cacheless(model: nn.Module | None) -> Iterator[None]:
    """No cache of keys and values, to which a checkpointed layer would be written twice; models look at their mode."""
    modules = () if model is None else model.modules()
    configs = {id(module.config): module.config for module in modules if hasattr(module, "config")}
    caching: list[Any] = [config for config in configs.values() if getattr(config, "use_cache", False) is True]
    try:
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for config in caching:
            config.use_cache = True


def _checkpoints(module: nn.Module) -> bool:
    """Whether a layer's forward pass is its own checkpoint, so that its mode decides of nothing but that."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing


def _checkpointed(
    checkpoint: Callable[..., Any], noisy: list[nn.Module], run: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    def quiet(*given: Any, **named: Any) -> Any:
        modes = [module.training for module in noisy]
        for module in noisy:
            module.training = False
        try:
            return run(*given, **named)
        finally:
            for module, mode in zip(noisy, modes, strict=True):
                module.training = mode

    return checkpoint(quiet, *args, **kwargs)
