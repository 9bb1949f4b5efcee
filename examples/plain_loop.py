"""A plain PyTorch loop: any `nn.Module` learns a second task and keeps its first.

    python examples/plain_loop.py

Anchor the trained model on a sample of old data, then add `penalty()` to the new loss. Nothing else changes, and
the old data is not needed again. Here every weight of a small classifier is fine-tuned; its inputs move elsewhere.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast

torch.set_num_threads(1)
torch.manual_seed(0)
OLD = torch.randn(10, 32)  # the centres of ten classes
NEW = OLD + 0.8 * torch.randn(10, 32)  # the same classes, measured in another place


def data(centres: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points around the centres, and their classes."""
    labels = torch.randint(10, (count,))
    return centres[labels] + 1.5 * torch.randn(count, 32), labels


def forward_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What Holdfast asks about a model that it does not know: (logits, labels) of one batch."""
    inputs, labels = batch
    return model(inputs), labels


def train(model: nn.Module, centres: Tensor, penalty: Callable = lambda: 0.0) -> nn.Module:
    """The usual loop, with one term more."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(400):
        inputs, labels = data(centres, 128)
        loss = F.cross_entropy(model(inputs), labels) + penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def rise(model: nn.Module, centres: Tensor) -> float:
    """The loss on fresh data since the start, in nats per example."""
    inputs, labels = data(centres, 20_000)
    return float(F.cross_entropy(model(inputs), labels) - F.cross_entropy(start(inputs), labels))


start = train(nn.Sequential(nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 10, bias=False)), OLD)
old_data = [data(OLD, 100) for _ in range(20)]
anchor = holdfast.Anchor.estimate(start, old_data, forward_loss=forward_loss, item="example")

plain = train(copy.deepcopy(start), NEW)
held = copy.deepcopy(start)
train(held, NEW, holdfast.Penalty(held, anchor, strength=1.0))

for name, model in (("plain", plain), ("held", held)):
    print(f"{name}: gained {-rise(model, NEW):.3f} nats on the new data, lost {rise(model, OLD):.3f} on the old")
assert rise(held, OLD) < rise(plain, OLD) / 2, "the penalty should more than halve the forgetting"
assert rise(held, NEW) < 0.9 * rise(plain, NEW), "and keep nine tenths of the gain"
