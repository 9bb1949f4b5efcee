"""Models with a SIFT adapter, the slow obvious twin that trains densely and masks, and data for both."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from holdfast.sift.config import SiftConfig
from holdfast.sift.finding import entries_of

BATCH = 8


def perceptron(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Three layers; no size is a multiple of a vector register."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)).to(dtype)


def sifted(model: nn.Module, targets: Any = ("0", "2", "4"), **options: Any) -> PeftModel:
    """A SIFT adapter on the model; its entries chosen at random unless `score` says otherwise."""
    targets = list(targets) if isinstance(targets, tuple) else targets
    size = {} if "count" in options else {"density": 0.3}
    options = {"score": "random", **size, **options}
    return get_peft_model(model, SiftConfig(target_modules=targets, **options))


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """What an optimizer is given."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def batches(count: int, size: int = BATCH, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Inputs (size, 5) and targets (size, 3)."""
    generator = torch.Generator().manual_seed(5)
    draw = [torch.randn(size, 8, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]
    return [(both[:, :5], both[:, 5:]) for both in draw]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The mean squared error."""
    return (model(batch[0]) - batch[1]).square().mean()


def train(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """One step for each batch."""
    for batch in data:
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()


def bits(model: PeftModel) -> dict[str, Tensor]:
    """Copies of the tensors that have entries, as they are."""
    return {name: found.tensor.detach().clone() for name, found in entries_of(model).items()}


def masks(model: PeftModel) -> dict[str, Tensor]:
    """Name of the tensor -> which of its entries train."""
    found = {}
    for name, one in entries_of(model).items():
        mask = torch.zeros(one.tensor.numel(), dtype=torch.bool)
        mask[one.entries.indices.long()] = True
        found[name] = mask.view(one.tensor.shape)
    return found


class Twin:
    """Dense training of a copy of the base model, where entries outside the masks are put back after every step."""

    def __init__(
        self, base: nn.Module, masks: dict[str, Tensor], optimizer: Callable[..., Any], **options: Any
    ) -> None:
        self.model = copy.deepcopy(base).requires_grad_(False)
        held = dict(self.model.named_parameters())
        self.held = {name: held[name].requires_grad_() for name in masks}
        self.masks, self.start = masks, {name: tensor.detach().clone() for name, tensor in self.held.items()}
        self.optimizer = optimizer(list(self.held.values()), **options)

    def train(self, data: Iterable[tuple[Tensor, Tensor]], clip: float | None = None) -> None:
        """One step for each batch."""
        for batch in data:
            self.optimizer.zero_grad()
            loss(self.model, batch).backward()
            for name, tensor in self.held.items():
                tensor.grad.mul_(self.masks[name])
            if clip is not None:
                nn.utils.clip_grad_norm_(list(self.held.values()), clip)
            self.optimizer.step()
            with torch.no_grad():
                for name, tensor in self.held.items():
                    tensor.copy_(torch.where(self.masks[name], tensor, self.start[name]))
