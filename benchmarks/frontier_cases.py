"""The ways of learning and holding on that the frontier compares, each at a few strengths.

Strengths of a structure are such that plain LoRA's own shift would cost between 1 and 40 nats when it learns code:
curves then span most of what is between 90 and 99 % of plain LoRA's gain. GSM8K gives way sooner, and is asked at a
quarter of the strengths. Block-tridiagonal curvature of LoRA's factors has no curve of its
own: at LoRA's start it is block-diagonal (see `holdfast.penalties.factors`).
"""

from dataclasses import dataclass

from holdfast.comparison import Hold
from holdfast.demo import way

MLP = ["gate_proj", "up_proj", "down_proj"]
TWO_SIDED = (4.0, 50.0)
DISTILLED = (0.3, 1.2, 5.0)
KEPT = 64  # sequences: a step with 256 costs several times plain LoRA's
WATCHED = (0.04, 0.08, 0.16, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9)  # shares of the steps


@dataclass(frozen=True)
class Method:
    """One curve: its settings, and whether they end in the plain run at strength zero."""

    name: str
    holds: list[Hold]
    limit: bool = True


def methods(steps: int, share: float = 1.0) -> list[Method]:
    """All of them; the first is plain LoRA, whose way is early stopping. `share` is of every structure's strengths."""
    watched = [max(1, round(part * steps)) for part in WATCHED]
    return [
        Method("early stopping", [Hold(evaluate_at=watched)], limit=False),
        Method("low learning rate", [Hold(learning_rate=rate) for rate in (1e-3, 3e-4)]),
        Method("weight decay", [Hold(weight_decay=decay) for decay in (1.0, 6.0, 20.0)]),
        Method("MLP only", [Hold(targets=MLP, evaluate_at=watched)], limit=False),
        Method("frozen A", [Hold(method="lora-fa", evaluate_at=watched)], limit=False),
        Method("replay", [way(replay=weight) for weight in (0.1, 0.5, 2.0)]),
        Method("distill, own text", [way(distill=weight) for weight in DISTILLED]),
        Method("distill, source text", [way(distill=weight, distill_source="source") for weight in DISTILLED]),
        *structures(share),
    ]


def structures(share: float) -> list[Method]:
    """Every curvature of the weights, L2, the papers' other forms, and curvatures of the adapter's own parameters."""

    def held(curvature: str, *strengths: float, **options: object) -> list[Hold]:
        return [
            Hold.model_validate({"curvature": curvature, "strength": share * strength, **options})
            for strength in strengths
        ]

    return [
        Method("identity", held("identity", 0.02, 0.08, 0.3)),
        Method("diagonal", held("diagonal", 10.0, 40.0, 120.0)),
        Method("diagonal, per sequence", held("diagonal", 10.0, 100.0, per="sequence")),
        Method("rank-one", held("rank-one", 10.0, 100.0)),
        Method("kronecker", held("kronecker", *TWO_SIDED)),
        Method("kronecker, damping 0.1", held("kronecker", *TWO_SIDED, damping=0.1)),
        Method("kronecker, data labels", held("kronecker", *TWO_SIDED, fisher="data")),
        Method("kronecker, frozen A", held("kronecker", *TWO_SIDED, method="lora-fa"), limit=False),
        Method("tracekron", held("tracekron", *TWO_SIDED)),
        Method("eigen", held("eigen", *TWO_SIDED)),
        Method("eigen, per sequence", held("eigen", *TWO_SIDED, per="sequence")),
        Method("tridiagonal", held("tridiagonal", *TWO_SIDED)),
        Method("samples", held("samples", *TWO_SIDED, 400.0)),
        Method("samples-joint", held("samples-joint", 2.0, 20.0, keep=KEPT)),
        Method("absolute", held("absolute", 0.01, 0.1, form="absolute")),
        Method("adapter diagonal", held("diagonal", 20.0, 200.0, space="adapter")),
        Method("adapter kronecker", held("kronecker", 12.0, 120.0, space="adapter")),
        Method("adapter kronecker, refreshed", held("kronecker", 3.0, 30.0, form="factors", refresh=True)),
        Method("adapter kronecker, prior", held("kronecker", 12.0, 120.0, form="factors", prior=0.02)),
    ]
