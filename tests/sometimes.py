"""A model whose two layers are called by keyword, apart, or only now and then, as its batch says."""

from collections.abc import Callable

import torch
from architectures import initialised
from laws import drawn
from networks import Batch, Network, logits_and_labels
from torch import Tensor, nn


class Two(nn.Module):
    """Two layers beside each other, given what `how` says."""

    def __init__(self, how: Callable[["Two", Tensor], Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.head, self.how = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3), how

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.how(self, x)))


def together(model: Two, x: Tensor) -> Tensor:
    """One and the same tensor."""
    return model.left(x) * model.right(x)


def apart(model: Two, x: Tensor) -> Tensor:
    """The same numbers, not the same tensor."""
    return model.left(x) * model.right(x.clone())


def by_keyword(model: Two, x: Tensor) -> Tensor:
    """No positional argument."""
    return model.left(input=x) * model.right(input=x)


def hidden_sometimes(model: Two, x: Tensor) -> Tensor:
    """A part that gradients reach by its input alone, for some batches without gradients."""
    if float(x.detach()[0, 0]) > 0:
        return together(model, x)
    with torch.no_grad():
        return together(model, x)


def sometimes_apart(model: Two, x: Tensor) -> Tensor:
    """Together in all but one batch."""
    return apart(model, x) if float(x.detach()[0, 0]) > 1 else together(model, x)


def experts(model: Two, x: Tensor) -> Tensor:
    """Both or none."""
    return together(model, x) if float(x.detach()[0, 0]) > 0 else x


def batches() -> list[Batch]:
    """Five of two rows; the first number of each batch is one of the five below."""
    rows = drawn(1, 5, 2, 4)
    rows[:, 0, 0] = torch.tensor([0.5, -0.5, 0.2, 1.5, -0.1], dtype=torch.float64)
    return [{"x": one, "labels": torch.tensor([0, 2])} for one in rows]


ROWS = [{"x": x, "labels": label} for batch in batches() for x, label in zip(batch["x"], batch["labels"], strict=True)]
EXPERTS = Network("experts", lambda: initialised(Two(experts)), ROWS, "all-linear", logits_and_labels)
