"""How true the forecast is: 1/2 q of every structure against the KL and the loss rise of real fine-tuning.

    python benchmarks/fidelity.py --json benchmarks/results/fidelity.json

The shipped model learns Python code with plain LoRA (the demo's settings); its adapter is kept after 5, 30 and 200
steps. At each depth, at the whole shift and at 30 and 5 % of it (B scaled: small shifts are where a quadratic should
hold), KL(p_anchor || p_now) and the rise of the loss are measured on 64 held-out prose sequences; 1/2 q comes from
anchors measured on 128 sequences that the model was pre-trained on, every structure with sampled and with data
labels, per token and per sequence, on the weights and on the adapter's own parameters at its start, with damping 0
and 0.1.

The case "exact" is the Fisher form of the whole model at once, from derivatives of the logits along the shift on the
measured sequences: what is between it and the KL is not quadratic, and what is between it and a structure is that
structure's own. `summary` has medians over seeds; `ratio_to_kl` 1 is a true forecast, and one that stays the same
over depths is made true by a single strength. Cut for time: 2 seeds, 128 sequences an anchor, 64 measured.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn
from truth import Place, State, load, measured, scaled, state

from holdfast import catalogue, demo
from holdfast.anchor import Anchor
from holdfast.batches import collate
from holdfast.errors import HoldfastError
from holdfast.language_model import load_model
from holdfast.penalties.quadratic import Penalty
from holdfast.training import train
from holdfast.tuners.options import chosen

DEPTHS, SCALES, DAMPINGS = (5, 30, 200), (1.0, 0.3, 0.05), (0.0, 0.1)
MEASURED, SOURCE, BATCH = 64, 128, 8
# What is asked of each structure; a structure says itself what it does not do.
WAYS = [
    *({"fisher": fisher, "per": per} for per in ("token", "sequence") for fisher in ("sampled", "data")),
    *({"fisher": fisher, "per": "token", "space": "adapter"} for fisher in ("sampled", "data")),
]


def main() -> None:
    """Measure, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--depths", type=int, nargs="+", default=DEPTHS, metavar="STEPS", help="from 2: warm-up begins at rate 0"
    )
    parser.add_argument("--only", nargs="+", metavar="KIND", help="of the structures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for seed in range(options.seeds):
        rows += of_seed(seed, tuple(options.depths), kinds(options.only), skipped)
    told = summary(rows)
    facts = {"model": "shipped", "measured": MEASURED, "source": SOURCE, "length": demo.settings().length}
    measure.publish(rows, options.json, settings=facts, skipped=skipped, summary=told)
    if options.json is not None:
        plot(told, options.json.with_suffix(".svg"))


def kinds(only: list[str] | None) -> list[str]:
    """The structures that are measured on data: what needs none forecasts nothing."""
    found = [name for name in catalogue.names("curvature") if catalogue.curvature(name).forecasts]
    return [name for name in found if only is None or name in only]


def of_seed(seed: int, depths: tuple[int, ...], kinds: list[str], skipped: dict[str, str]) -> list[dict[str, Any]]:
    """All rows of one training run."""
    common = demo.settings(max(depths))
    work = demo.workload(common)
    model = load_model(common.model, "float32")
    torch.manual_seed(seed)
    tuned = chosen(catalogue.tuner(common.method), {}, rank=common.rank).prepare(model, common.targets)
    started, kept = state(tuned), {}

    def keep(step: int, steps: int) -> None:
        if step in depths:
            kept[step] = state(tuned)

    train(tuned, work.target_train, common.training, seed=seed, on_step=keep, quiet=True)
    places = {(depth, scale): scaled(kept[depth], scale) for depth in depths for scale in SCALES}
    truth = measured(tuned, work.measured["source_test"][:MEASURED], places)
    exact = {"fisher": "exact", "per": "sequence"}
    rows = [row("exact", exact, 0.0, seed, place, found["exact"], found) for place, found in truth.items()]
    source = [collate(work.source_train[start : start + BATCH]) for start in range(0, SOURCE, BATCH)]
    for kind, way in itertools.product(kinds, WAYS):
        load(tuned, started)
        try:
            anchored, seconds = anchor(tuned, source, kind, common.targets, seed, way)
        except HoldfastError as error:
            skipped[f"{kind} {way}"] = str(error).splitlines()[0]
            continue
        for damping in DAMPINGS:
            found = forecasts(tuned, started, lambda d=damping, a=anchored: Penalty(tuned, a, 1.0, d), places)
            rows += [row(kind, way, damping, seed, place, found[place], truth[place], seconds) for place in places]
    return rows


def anchor(
    tuned: nn.Module, source: list[dict[str, Tensor]], kind: str, targets: Any, seed: int, way: dict[str, str]
) -> tuple[Anchor, float]:
    """One anchor, and the seconds it took."""
    started = time.perf_counter()
    options: dict[str, Any] = way
    found = Anchor.estimate(tuned, source, curvature=kind, targets=targets, seed=seed, progress=False, **options)
    return found, time.perf_counter() - started


def forecasts(
    tuned: nn.Module, started: State, build: Callable[[], Penalty], places: dict[Place, State]
) -> dict[Place, float]:
    """1/2 q at each place; the penalty is built where the model stands at its start."""
    load(tuned, started)
    penalty = build()
    found = {}
    for place, at in places.items():
        load(tuned, at)
        with torch.no_grad():
            found[place] = float(penalty())
    return found


def row(
    kind: str,
    way: dict[str, str],
    damping: float,
    seed: int,
    place: Place,
    half_q: float,
    truth: dict[str, float],
    seconds: float | None = None,
) -> dict[str, Any]:
    """One forecast beside the truth."""
    depth, scale = place
    return {
        "tool": "holdfast",
        "case": kind,
        "space": "weights",
        **way,
        "damping": damping,
        "depth": depth,
        "scale": scale,
        "seed": seed,
        "half_q": half_q,
        "kl": truth["kl"],
        "loss_rise": truth["loss_rise"],
        "ratio_to_kl": half_q / truth["kl"],
        "anchor_seconds": seconds,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over seeds, and how far the ratio wanders over depths at the same scale."""
    known = ("case", "fisher", "per", "space", "damping", "scale")
    groups: dict[tuple[Any, ...], dict[int, list[float]]] = {}
    for each in rows:
        depths = groups.setdefault(tuple(each[name] for name in known), {})
        depths.setdefault(each["depth"], []).append(each["ratio_to_kl"])
    found = []
    for group, depths in groups.items():
        middle = {depth: statistics.median(ratios) for depth, ratios in depths.items()}
        facts = dict(zip(known, group, strict=True))
        wander = max(middle.values()) / min(middle.values()) if min(middle.values()) > 0 else None
        found += [
            {**facts, "name": name_of(facts), "depth": depth, "ratio_to_kl": ratio, "wander": wander}
            for depth, ratio in middle.items()
        ]
    return found


def name_of(facts: dict[str, Any]) -> str:
    """What a plot calls a structure: what is usual goes without saying."""
    usual = ("sampled", "exact", "token", "weights")
    said = [facts[name] for name in ("space", "per", "fisher") if facts[name] not in usual]
    return ", ".join([facts["case"], *said, *([f"damping {facts['damping']}"] if facts["damping"] else [])])


def plot(told: list[dict[str, Any]], path: Path) -> None:
    """Ratios by structure and depth as an SVG, where matplotlib is installed."""
    try:
        import plots
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib")
        return
    plots.fidelity(told, path)


if __name__ == "__main__":
    main()
