"""Dense shift: full fine-tuning, and adapters whose shift has no smaller form (DoRA)."""

from torch import Tensor

from holdfast.shifts.shift import Form, Shift, mapped, precise


class Dense(Shift):
    """D itself, (out, in), differentiable in the weight or in the adapter that produced it."""

    structure = "dense"

    def __init__(self, delta: Tensor) -> None:
        self.delta = precise(delta)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.delta,)

    def products(self, curvature: Form) -> tuple[Tensor, ...]:
        return (curvature.apply(self.delta),)

    def projected(self, inputs: Tensor, gradients: Tensor) -> Tensor:
        return (mapped(self.delta, inputs) * gradients).sum(dim=(1, 2))

    def between(self, other: Shift, gradients: Tensor, inputs: Tensor) -> Tensor:
        """tr((D^T G) D' S^T)."""
        return other.projected(inputs[None], (self.delta.T @ gradients)[None])[0]

    def scaled(self, factor: Tensor) -> "Dense":
        return Dense(factor * self.delta)

    def matrix(self) -> Tensor:
        return self.delta

    @property
    def shape(self) -> tuple[int, int]:
        out, inn = self.delta.shape
        return out, inn
