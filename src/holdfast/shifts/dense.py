"""Dense shift: full fine-tuning, and adapters whose shift has no smaller form (DoRA)."""

from torch import Tensor

from holdfast.shifts.shift import Form, Shift


class Dense(Shift):
    """D itself, (out, in), differentiable in the weight or in the adapter that produced it."""

    structure = "dense"

    def __init__(self, delta: Tensor) -> None:
        self.delta = delta

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.delta,)

    def products(self, curvature: Form) -> tuple[Tensor, ...]:
        return (curvature.apply(self.delta),)

    def matrix(self) -> Tensor:
        return self.delta

    @property
    def shape(self) -> tuple[int, int]:
        out, inn = self.delta.shape
        return out, inn
