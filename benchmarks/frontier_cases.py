"""The ways of learning and holding on that the frontier compares, each at a few strengths.

Strengths of the structures are spaced so that the curve spans 90 to 99 % of plain LoRA's gain.
"""

from dataclasses import dataclass

from holdfast.comparison import Hold
from holdfast.demo import way

MLP = ["gate_proj", "up_proj", "down_proj"]
WATCHED = (0.04, 0.08, 0.16, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9)  # shares of the steps


@dataclass(frozen=True)
class Method:
    """One curve: its settings, and whether they end in the plain run at strength zero."""

    name: str
    holds: list[Hold]
    limit: bool = True


def methods(steps: int) -> list[Method]:
    """All of them; the first is plain LoRA, whose way is early stopping."""
    watched = [max(1, round(share * steps)) for share in WATCHED]
    return [
        Method("early stopping", [Hold(evaluate_at=watched)], limit=False),
        Method("low learning rate", [Hold(learning_rate=rate) for rate in (1.5e-3, 6e-4, 2.5e-4)]),
        Method("weight decay", [Hold(weight_decay=decay) for decay in (1.0, 3.0, 10.0)]),
        Method("MLP only", [Hold(targets=MLP, evaluate_at=watched)], limit=False),
        Method("frozen A", [Hold(method="lora-fa", evaluate_at=watched)], limit=False),
        Method("replay", [way(replay=weight) for weight in (0.1, 0.5, 2.0)]),
        Method("distill, own text", [way(distill=weight) for weight in (0.3, 1.2, 5.0)]),
        Method("distill, source text", [way(distill=weight, distill_source="source") for weight in (0.3, 1.2, 5.0)]),
        *structures(),
    ]


def structures() -> list[Method]:
    """Every curvature that is measured, and L2."""
    return [
        Method("identity", held("identity", 0.01, 0.06, 0.3)),
        Method("diagonal", held("diagonal", 10.0, 40.0, 200.0)),
        Method("diagonal, per sequence", held("diagonal", 10.0, 40.0, 200.0, per="sequence")),
        Method("kronecker", held("kronecker", 4.0, 24.0, 150.0)),
        Method("kronecker, damping 0.1", held("kronecker", 4.0, 24.0, 150.0, damping=0.1)),
        Method("kronecker, data labels", held("kronecker", 2.0, 12.0, 75.0, fisher="data")),
    ]


def held(curvature: str, *strengths: float, **options: object) -> list[Hold]:
    """One curvature at several strengths."""
    return [Hold.model_validate({"curvature": curvature, "strength": s, **options}) for s in strengths]
