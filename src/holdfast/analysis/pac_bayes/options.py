"""What is asked of `holdfast analyse pac-bayes`."""

from dataclasses import dataclass

from holdfast import catalogue
from holdfast.analysis.pac_bayes.risk import Losses
from holdfast.errors import HoldfastError


@dataclass(frozen=True)
class Options:
    """How to tune and what to certify.

    Args:
        method: how the model is tuned, of `rank` (2 where it has one) or with as many `parameters`, for `steps` on the
            first half and half as many on all documents.
        prior: a curvature for the prior's shape: "identity", or one that is measured on the first half.
        loss: "error" or "nats", the latter cut off at `ceiling`.
        delta: the certificate may be wrong with this probability.
        draws: of noise, for the risk under it.
        tolerance: rise of the loss (in [0, 1]) that the noise may cause on the first half.
        share: of the documents, for the first half.
    """

    method: str = "lora"
    rank: int | None = None
    parameters: str | None = None
    steps: int = 60
    learning_rate: float = 3e-3
    prior: str = "identity"
    loss: str = "error"
    ceiling: float = 8.0
    delta: float = 0.05
    draws: int = 1000
    tolerance: float = 0.01
    share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("delta", "tolerance", "share"):
            if not 0 < getattr(self, name) < 1:
                raise HoldfastError(f"{name} is {getattr(self, name)}", wanted="a number between 0 and 1")
        catalogue.tuner(self.method)
        catalogue.curvature(self.prior)

    @property
    def losses(self) -> Losses:
        """What is bounded."""
        return Losses(self.loss, self.ceiling)
