"""The most memory that SIFT takes, to the byte: from the allocator's own events."""

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from sifted import sifted, trainable
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

WIDTH, DEPTH, BATCH, STEPS = 96, 6, 32, 3
TENSOR = 4 * WIDTH * WIDTH  # bytes of one weight
ENTRY = 24  # bytes for each, under AdamW


class Deep(nn.Module):
    """Layers of one size; `saving`: their activations are computed again, each layer's by itself."""

    def __init__(self, saving: bool) -> None:
        super().__init__()
        self.saving = saving
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = checkpoint(self.one, layer, x, use_reentrant=False) if self.saving else self.one(layer, x)
        return x

    @staticmethod
    def one(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """One layer."""
        return torch.tanh(layer(x))


def dropping(model: nn.Module) -> nn.Module:
    """Nothing trains, and every dense gradient goes as it comes: activations and the largest gradient remain."""
    for layer in model.layers:
        layer.weight.requires_grad_().register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return model


def peak(model: nn.Module, prepare: Callable[[nn.Module], nn.Module], train: bool) -> int:
    """Bytes at the most beyond the frozen model, through injection and a few steps."""
    own, x = copy.deepcopy(model), torch.randn(BATCH, WIDTH)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trained = prepare(own)
        optimizer = torch.optim.AdamW(trainable(trained), lr=1e-3) if train else None
        for _ in range(STEPS):
            trained(x).square().mean().backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("saving", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize("density", [0.01, 0.3])
@pytest.mark.parametrize(("score", "scratch"), [("random", 0.0), ("gradient", 1.5)])
def test_the_peak_is_the_entries_the_activations_and_the_largest_gradient(saving, density, score, scratch):
    """Where the first backward pass chooses, with the scores and masks of the one tensor that it is at."""
    torch.manual_seed(0)
    model = Deep(saving).requires_grad_(False)
    floor = peak(model, dropping, train=False)
    assert floor > TENSOR  # the largest gradient, and activations
    entries = DEPTH * round(density * WIDTH * WIDTH)
    sparse = lambda own: sifted(own, targets=r"layers\.\d", score=score, density=density)  # noqa: E731
    assert peak(model, sparse, train=True) <= floor + ENTRY * entries + scratch * TENSOR
