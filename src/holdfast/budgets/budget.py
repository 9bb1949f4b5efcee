"""What a user accepts to lose, as they say it: nats per source item, a share of a loss, or points of a metric."""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from holdfast.errors import HoldfastError

Measure = Literal["nats", "perplexity", "loss", "accuracy"]
MEASURES: tuple[str, ...] = get_args(Measure)
FORMS = "0.02 (nats per source item), 1% (of perplexity), 'perplexity 1%', 'loss 1%' or 'accuracy 0.5' (points)"
_TEXT = re.compile(r"(?:(?P<of>[a-z]+)\s+)?(?P<amount>[-+.\deE]+)\s*(?P<percent>%)?(?:\s*(?P<unit>[a-z]+))?")


@dataclass(frozen=True)
class Budget:
    """The most that the source may suffer: `amount` nats or points, or a share where `of` is a loss or perplexity.

    A share of perplexity is the same at any loss: a rise by the share s is log(1 + s) nats per item.

    Raises:
        HoldfastError: an amount that is not a number above 0.
    """

    amount: float
    of: Measure = "nats"

    def __post_init__(self) -> None:
        if not (0 < self.amount < math.inf):
            raise HoldfastError(
                f"a budget of {self.amount:g}",
                wanted="a number above 0",
                remedy="say how much may be lost, 0.01 nats for instance; nothing at all would be not to train",
            )

    @classmethod
    def parse(cls, value: "Budget | float | str") -> "Budget":
        """The budget that a number or a text asks for.

        Raises:
            HoldfastError: a text of another form.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(float(value))
        found = _TEXT.fullmatch(str(value).strip().lower())
        try:
            amount = float(found["amount"]) if found else math.nan
        except ValueError:
            found = None
        if not found:
            raise HoldfastError(f"budget {value!r}", wanted=FORMS)
        of, percent, unit = found["of"], bool(found["percent"]), found["unit"]
        measure = of or ("perplexity" if percent else unit or "nats")
        relative = measure in ("perplexity", "loss")
        idle = unit not in (None, "points") and (of is not None or percent)
        if measure not in MEASURES or relative != percent or idle or (unit == "points" and measure != "accuracy"):
            raise HoldfastError(f"budget {value!r}", wanted=FORMS)
        return cls(amount / 100 if percent else amount, measure)  # type: ignore[arg-type]

    @property
    def unit(self) -> str:
        """What it is held and measured in."""
        return "points" if self.of == "accuracy" else "nats"

    def limit(self, before: float | None = None) -> float:
        """The budget in its unit.

        Args:
            before: the source loss before training, in nats per item; a share of the loss needs it.

        Raises:
            HoldfastError: a share of a loss that is not known or not positive.
        """
        if self.of == "perplexity":
            return math.log1p(self.amount)
        if self.of != "loss":
            return self.amount
        if before is None or before <= 0:
            raise HoldfastError(
                f"a budget of {self.amount:.3%} of the source loss, and that loss is {before}",
                remedy="pass source data to measure it on, or state the budget in nats",
            )
        return self.amount * before

    def words(self, before: float | None = None) -> str:
        """The budget as a reader meets it, with its nats where it is a share."""
        if self.unit == "points":
            return f"{self.amount:g} point{'' if self.amount == 1 else 's'} of accuracy"
        if self.of == "nats":
            return f"{self.amount:g} nats per item"
        nats = "" if self.of == "loss" and not before else f", {self.limit(before):.3g} nats per item"
        return f"{100 * self.amount:.3g} % of {self.of}{nats}"
