"""One factor for the whole shift."""

from holdfast.fitting import shrinkage
from holdfast.fitting.way import Way


class Scale(Way):
    """D' = a D with a = min(1, sqrt(B / P)): exact for every curvature, since q is quadratic."""

    name = "scale"
    what = "every layer by one factor"
    weighs = False

    def aim(self, limit: float) -> dict[str, float]:
        self.moving.scale(1.0)
        factor = shrinkage.scale(self.moving.forecast(), limit)
        return self.moving.settle(dict.fromkeys(self.moving.moves, factor), limit)
