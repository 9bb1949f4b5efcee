"""The interface of the room's ways to fit: a family of shrunk shifts, one for each forecast."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from holdfast.fitting.moving import Moving


class Way(ABC):
    """Shrinks the shifts of a model until their forecast is a given one.

    Args:
        moving: the model, its shifts as they came.
        worths: layer name -> what its shift as it came is worth, n_l >= 0, in any one unit.
    """

    name: ClassVar[str]
    what: ClassVar[str]  # for a card: "every layer by one factor"
    weighs: ClassVar[bool] = True  # whether it looks at the worths

    def __init__(self, moving: Moving, worths: Mapping[str, float]) -> None:
        self.moving, self.worths = moving, worths
        self.lost: dict[str, float] = {}  # layer name -> share of |D'|^2 that the adapter's rank could not hold

    @abstractmethod
    def aim(self, limit: float) -> dict[str, float]:
        """Write the fit of forecast `limit`, nats, or the shift as it came where that is inside.

        Returns:
            Layer name -> |D'| / |D|, for scaled layers the factor itself.
        """
