"""What came of a budget: what result rows say of it, and what a reader has to know."""

from typing import Any

from holdfast.budgets.gauge import Reading
from holdfast.penalties.regularizer import Regularizer

MUCH = 0.95  # of the shift: what is scaled further back has lost some of what was learned
OVER = 1.25  # of the budget: beyond that the result says so


def outcome(term: Regularizer | None) -> dict[str, Any]:
    """The first budget in its unit, what steered, and its corrected forecast and strength at the end."""
    if term is None or not term.steerings:
        return {"budget": None}
    steering = term.steerings[0]
    words = [one.budget.words(None if one.gauge is None else one.gauge.loss) for one in term.steerings]
    return {
        "budget": steering.controller.limit,
        "budget_unit": steering.budget.unit,
        "budget_words": ", ".join(words),
        "steered_by": "forecast" if steering.gauge is None else "measurement",
        "calibrated_forecast": steering.expected(),
        "final_strength": steering.strength,
    }


def caveats(term: Regularizer | None, measured: Reading | None, scaled_by: float) -> list[str]:
    """Sentences for the warnings of a result; none where the budget held and was measured.

    Args:
        term: what a budget steered.
        measured: the forgetting on data that steered nothing.
        scaled_by: what was left of the shift to get inside the budget.
    """
    if term is None or not term.steerings:
        return []
    steering, said = term.steerings[0], []
    limit, unit = steering.controller.limit, steering.budget.unit
    if steering.gauge is None:
        said.append(
            "The forecast alone steered the budget; nothing was measured while training, and forecasts are low: what "
            "is forgotten may be several times the budget."
        )
    if scaled_by < MUCH:
        said.append(f"Training ended over the budget; the shift was scaled to {scaled_by:.0%} to get inside it.")
    if measured is not None and len(term.steerings) == 1 and measured.amount > OVER * limit:
        said.append(
            f"The budget was {limit:.3g} {unit}, and {measured.amount:.3g} (± {measured.error:.1g}) were forgotten on "
            "source data that steered nothing."
        )
    return said
