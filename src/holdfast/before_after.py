"""Both sides of a run, measured before, along and after training, on rows that neither trained nor steered it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from holdfast.batches import Row, collate
from holdfast.budgets.budget import Budget
from holdfast.budgets.gauge import Gauge, Reading
from holdfast.sides import MEASURED_ITEMS, Side, limited

BATCH, CLUSTERS = 8, 8  # rows that are measured at once; batches that a standard error takes
BOTH = ("source", "target")


class BeforeAfter:
    """The gauges of a run's held-out rows; build it when the model is prepared and has not moved.

    Args:
        model: as it will be trained.
        sides: source and target; None where there is no data.
        budget: what the source's forgetting is measured in; None: nats.

    Raises:
        HoldfastError: no scored item, losses that are not finite, or a budget that the held-out rows can't measure.
    """

    def __init__(self, model: nn.Module, sides: Mapping[str, Side | None], budget: Budget | None) -> None:
        self.gauges: dict[str, Gauge] = {}
        self.readings: dict[str, Reading] = {}
        for name in ("target", "source"):
            side = sides[name]
            if side is not None:
                rows = limited(side.held_out, MEASURED_ITEMS)
                unit = budget if name == "source" else None
                self.gauges[name] = gauge = Gauge(model, batches(rows), unit, name=name, progress=True)
                gauge.prepare()

    def now(self) -> dict[str, float]:
        """The losses of both sides at a step of training."""
        return {name: gauge.look(whole=True, quiet=True).loss for name, gauge in self.gauges.items()}

    def finish(self) -> None:
        """Measure both sides after training."""
        self.readings = {name: gauge.look(whole=True) for name, gauge in self.gauges.items()}

    def row(self) -> dict[str, Any]:
        """What a result row holds of it: losses in nats per item, forgetting in the budget's unit with its error."""
        before = {f"{name}_before": self.gauges[name].loss if name in self.gauges else None for name in BOTH}
        after = {f"{name}_after": self.readings[name].loss if name in self.gauges else None for name in BOTH}
        source = self.readings.get("source")
        lost = {} if source is None else {"forgetting": source.amount, "forgetting_error": finite(source.error)}
        return {**before, **after, **lost}


def finite(error: float) -> float | None:
    """A standard error, or None where one batch says nothing of it."""
    return error if error < float("inf") else None


def batches(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as batches to measure on, enough of them for a standard error."""
    size = max(1, min(BATCH, len(rows) // CLUSTERS))
    return [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
