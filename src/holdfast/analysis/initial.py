"""The model as it was before it was pre-trained: the same architecture with random weights."""

import copy
from typing import Any

import torch

from holdfast.errors import HoldfastError


def random_like(model: Any, seed: int = 0) -> Any:
    """A new model of the same class and configuration, in eval mode, with the weights that its class draws.

    The random state is as before afterwards.

    Raises:
        HoldfastError: the model has no transformers configuration to be made from.
    """
    if getattr(model, "config", None) is None:
        raise HoldfastError(
            f"{type(model).__name__} has no configuration, so it can't be made anew",
            remedy="measure a randomly initialised model of your own beside it",
        )
    first = next(model.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = type(model)(copy.deepcopy(model.config))
    return made.to(device=first.device, dtype=first.dtype).eval()
