"""Ways of holding on and baselines that have a name: what each changes in a tune recipe, and the values to try.

A way is a row of this table: keys of a tune recipe (dots between parts) with a value, a list of values to try, or a
range {low, high}, searched on a logarithmic scale; `points` says how many of it a grid takes, `relative` that its ends
are multiples of what the base has. The ranges of strengths are those in which the benchmarks' curves lie, with a
factor of two on either side; another model or a longer training may want others.
"""

from typing import Any

PLAIN = "plain"
STRONG = {"low": 1.0, "high": 64.0, "points": 4}  # of two-sided curvatures and what is beside them
DISTILLED = {"low": 0.15, "high": 5.0, "points": 4}
BOTH = {"curvature": "kronecker", "strength": 4.0, "distill": 0.6, "together": {"low": 0.25, "high": 8.0}}

NAMED: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "early-stopping": {"stops": PLAIN},
    "low-learning-rate": {"training.learning_rate": {"low": 0.1, "high": 0.5, "relative": True, "points": 2}},
    "weight-decay": {"training.weight_decay": {"low": 1.0, "high": 20.0}},
    "frozen-a": {"method": "lora-fa"},
    "sift": {"method": "sift"},
    "sift-global": {"method": "sift", "tuner.scope": "global", "tuner.batches": 8},
    "bottleneck": {"method": "bottleneck"},
    "convadapter": {"method": "convadapter"},
    "prefix": {"method": "prefix"},
    "ia3": {"method": "ia3"},
    "l2": {"curvature": "identity", "strength": {"low": 0.01, "high": 0.6}},
    "diagonal": {"curvature": "diagonal", "strength": {"low": 5.0, "high": 240.0}},
    "rank-one": {"curvature": "rank-one", "strength": {"low": 5.0, "high": 240.0}},
    "kronecker": {"curvature": "kronecker", "strength": STRONG},
    "kronecker-damped": {"curvature": "kronecker", "damping": 0.1, "strength": STRONG},
    "tracekron": {"curvature": "tracekron", "strength": STRONG},
    "eigen": {"curvature": "eigen", "strength": STRONG},
    "tridiagonal": {"curvature": "tridiagonal", "strength": STRONG},
    "samples": {"curvature": "samples", "strength": {"low": 2.0, "high": 400.0}},
    "samples-joint": {"curvature": "samples-joint", "keep": 64, "strength": {"low": 1.0, "high": 40.0}},
    "absolute": {"curvature": "absolute", "form": "absolute", "strength": {"low": 0.005, "high": 0.2}},
    "lalora": {"curvature": "diagonal", "space": "adapter", "strength": {"low": 10.0, "high": 400.0}},
    "lalora-kronecker": {"curvature": "kronecker", "space": "adapter", "strength": {"low": 6.0, "high": 240.0}},
    "distill-self": {"distill_from": "self", "distill": DISTILLED},
    "distill-source": {"distill": DISTILLED},
    "kronecker+distill-self": {**BOTH, "distill_from": "self"},
    "kronecker+distill-source": BOTH,
}

# What is compared where a recipe names no ways: the baselines without old data, L2 and EWC, and the two ways of
# holding on, apart and together.
USUAL = (
    PLAIN,
    "early-stopping",
    "low-learning-rate",
    "l2",
    "diagonal",
    "kronecker",
    "distill-self",
    "kronecker+distill-self",
)
