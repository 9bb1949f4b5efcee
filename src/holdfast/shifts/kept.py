"""Tensors that stay beside the layer that they belong to."""

from torch import Tensor


class Kept:
    """A tensor from the anchor that follows its layer: a Trainer places the model after the penalty was built."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def beside(self, weight: Tensor) -> Tensor:
        """The tensor, on the weight's device."""
        if self.tensor.device != weight.device:
            self.tensor = self.tensor.to(weight.device)
        return self.tensor
