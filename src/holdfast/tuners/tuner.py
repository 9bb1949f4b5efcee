"""The interface of the room: make a pre-trained model trainable in few parameters."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from holdfast.targets import Targets


class Tuner(ABC):
    """Prepares a model for training; the shift is read from the model afterwards."""

    name: ClassVar[str]
    paper: ClassVar[str]
    ranked: ClassVar[bool] = True  # whether it has a rank and an alpha

    @abstractmethod
    def prepare(self, model: nn.Module, targets: Targets, rank: int, alpha: float | None) -> nn.Module:
        """The model to train: adapters injected, or weights made trainable."""
