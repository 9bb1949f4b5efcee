"""Whether a forecast stays true once a penalty has pushed the shift to where it is not seen.

    python benchmarks/forecast.py --json benchmarks/results/forecast.json

The demo's task, its settings at 120 steps: plain LoRA and several ways of holding on. After training, 1/2 q of anchors
that no run was held by, measured on source sequences of their own, beside the measured rise of the source loss on the
test part. `ratio` is forecast over measured: 1 is true. Cut for time: 2 seeds, 120 steps.
"""

import argparse
from pathlib import Path
from typing import Any

import measure
import torch

from holdfast import demo
from holdfast.comparison import Hold, sides
from holdfast.comparison import measure as losses
from holdfast.contender import Contender
from holdfast.demo import way
from holdfast.penalties.quadratic import Penalty
from holdfast.training import train

FORECASTERS = ("diagonal", "kronecker", "tridiagonal", "samples", "samples-joint")
HOLDS = (
    Hold(),
    Hold(curvature="identity", strength=0.1),
    Hold(curvature="diagonal", strength=30.0),
    Hold(curvature="kronecker", strength=2.0),
    Hold(curvature="kronecker", strength=8.0),
    Hold(curvature="kronecker", strength=8.0, damping=0.1),
    way(distill=0.6),
)


def main() -> None:
    """Measure, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = demo.settings(options.steps)
    rows = [row for seed in range(options.seeds) for row in of_seed(settings, seed)]
    measure.publish(rows, options.json, settings=settings.model_dump(mode="json") | {"model": "shipped"})


def of_seed(settings: Any, seed: int) -> list[dict[str, Any]]:
    """Every way of holding on, with every forecast of what it cost."""
    work = demo.workload(settings)
    runs, others = Contender(settings, work, seed), Contender(settings, work, seed + 1000)
    rows = []
    for hold in HOLDS:
        torch.manual_seed(seed)
        model = runs.tuner(hold).prepare(runs.model(), settings.targets)
        penalties, _ = runs.penalties(model, hold)
        train(model, work.target_train, settings.training, penalties=penalties, seed=seed, quiet=True)
        found = sides(runs.before, losses(model, work), "test")
        rise = found["source_after"] - found["source_before"]
        for kind in FORECASTERS:
            anchor, seconds = others.anchor(Hold(curvature=kind))
            forecast: Any = Penalty(model, anchor).predicted_forgetting
            rows.append(
                {
                    "tool": "holdfast",
                    "case": kind,
                    "held_by": hold.label,
                    "strength": hold.strength or hold.distill or None,
                    "damping": hold.damping,
                    "seed": seed,
                    "forecast": forecast,
                    "measured": rise,
                    "ratio": round(forecast / rise, 4),
                    "against": "rise of the source loss, nats per token",
                    "anchor_seconds": round(seconds, 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
