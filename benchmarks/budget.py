"""Is a budget held, and what does holding it cost in learning?

    python benchmarks/budget.py --json benchmarks/results/budget.json
    python benchmarks/budget.py --gsm8k DIR --steps 40 --seeds 2 --json benchmarks/results/budget-gsm8k.json

The shipped model learns the demo's Python code (or GSM8K's answers) and is held by a Kronecker anchor, or by
distillation on its own text (one seed), within 0.01, 0.03, 0.1 and 0.3 nats per token: LoRA of rank 8 and full fine-
tuning of all linear layers, 3 seeds. Its source is the prose that it was pre-trained on, whose documents are divided:
an anchor (or nothing) is measured on some, others steer, and forgetting is measured on a third part. `unseen` is the
forgetting on prose that it never saw, which no budget was about.

`ratio` is the measured forgetting over the budget, with its standard error. `learning` is the gain over that of the
best fixed strength of the same way, seed and method at the same forgetting: read off the curve through the fixed
strengths and plain fine-tuning, gain against the logarithm of forgetting. A budget binds where plain fine-tuning
forgets more. `step_ratio` is CPU time of a step, measurements included, over plain fine-tuning's.

Each finished run is a line beside the result (`.jsonl`); the same command goes on from there.
"""

import argparse
import math
import random
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import frontier
import matched
import measure

from holdfast import demo
from holdfast.comparison import ComparisonSettings, Hold, Workload, blocks
from holdfast.language_model import load_tokenizer
from holdfast.tasks import prose

BUDGETS = (0.01, 0.03, 0.1, 0.3)
STEERING, TESTED = 800, 1000  # blocks of source; half of them for GSM8K
RATES = {"lora": None, "full": 5e-4}  # None: the demo's
WAYS = {"kronecker": {"curvature": "kronecker"}, "distill, own text": {"distill": 1.0}}
STRENGTHS = {
    ("kronecker", "lora"): (0.5, 2.0, 8.0, 32.0, 128.0, 512.0),
    ("kronecker", "full"): (2.0, 8.0, 32.0, 128.0, 512.0),
    ("distill, own text", "lora"): (0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
}
SEEDS = {"distill, own text": 1}  # at most, where not all; none for GSM8K
KEPT = (
    "budget", "calibrated_forecast", "predicted_forgetting", "final_strength", "scaled_by", "strength", "seconds",
    "source_before", "source_after", "target_before", "target_after",
)  # fmt: skip


def main() -> None:
    """Run what is not on record yet, and write or print."""
    options = arguments()
    common, work = workload(options)
    jobs = [(name, hold, seed) for seed in range(options.seeds) for name, hold in holds(options, seed)]
    rows = frontier.run(common, work, jobs, frontier.record_of(options), options.processes)
    result = [{"case": name, **row} for (name, _, _), row in zip(jobs, rows, strict=True)]
    held, fixed = compared(result)
    settings = {**common.model_dump(mode="json"), "model": "shipped", "target": "gsm8k" if options.gsm8k else "code"}
    settings |= {"rates": RATES, "blocks": {"steering": STEERING, "tested": TESTED}}
    measure.publish(held + fixed, options.json, settings=settings, summary=summary(held))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=frontier.STEPS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--cases", nargs="+", help="such as 'kronecker, lora'; default: all")
    parser.add_argument("--gsm8k", type=Path, metavar="DIR", help="learn GSM8K: its train.jsonl and test.jsonl")
    parser.add_argument("--processes", type=int, help="runs at a time; default: one per core")
    return parser.parse_args()


def holds(options: argparse.Namespace, seed: int) -> list[tuple[str, Hold]]:
    """The budgets, the fixed strengths, and plain fine-tuning of each method."""
    found = []
    for method, rate in RATES.items():
        same = {"method": method, "learning_rate": rate}
        found.append((f"plain, {method}", Hold(**same)))
        for way, keys in WAYS.items():
            if (way, method) not in STRENGTHS or seed >= seeds_of(way, options):
                continue
            if options.cases and f"{way}, {method}" not in options.cases:
                continue
            cheap = demo.CHEAP if "distill" in keys else {}
            name = f"{way}, {method}"
            found += [(name, Hold(**{**keys, **cheap, **same, "budget": f"{budget:g}"})) for budget in options.budgets]
            for strength in STRENGTHS[way, method]:
                weight = {"distill" if "distill" in keys else "strength": strength}
                found.append((name, Hold(**{**keys, **cheap, **same, **weight})))
    return found


def seeds_of(way: str, options: argparse.Namespace) -> int:
    """How many seeds a way is run with."""
    return 0 if options.gsm8k and way in SEEDS else min(SEEDS.get(way, options.seeds), options.seeds)


def workload(options: argparse.Namespace) -> tuple[ComparisonSettings, Workload]:
    """Settings and data, with the source's documents divided into what anchors, steers and tests."""
    common = demo.settings(options.steps)
    usual = demo.workload(common)
    tokenizer = load_tokenizer(common.model)
    documents = prose.documents("train")
    random.Random(1).shuffle(documents)
    rows = blocks(tokenizer, documents, common.length)
    parts = (TESTED, STEERING) if options.gsm8k is None else (TESTED // 2, STEERING // 2)
    tested, steering, rest = rows[: parts[0]], rows[parts[0] : sum(parts)], rows[sum(parts) :]
    target, test = usual.target_train, usual.measured["target_test"]
    if options.gsm8k is not None:
        target, test = (frontier.pairs(options.gsm8k / f"{split}.jsonl", tokenizer) for split in ("train", "test"))
        test = test[: demo.MEASURED]
    measured = {"source_test": tested, "target_test": test, "unseen_test": usual.measured["source_test"]}
    return common, Workload(target, rest, measured, steering=steering)


def compared(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Budget runs beside the fixed strengths of their case and seed, and those."""
    plain = {(row["method"], row["seed"]): row for row in rows if row["penalty"] == "none"}
    fixed = [row for row in rows if row["budget"] is None]
    held = []
    for row in rows:
        if row["budget"] is not None:
            start = plain[row["method"], row["seed"]]
            same = [other for other in fixed if (other["case"], other["seed"]) == (row["case"], row["seed"])]
            held.append(held_row(row, [*same, start], start))
    return held, [about(row) | {"kind": "fixed"} for row in fixed]


def about(row: dict[str, Any]) -> dict[str, Any]:
    """What all rows hold."""
    named = {"tool": "holdfast", "case": row["case"], "method": row["method"], "penalty": row["penalty"]}
    figures = {key: row[key] for key in KEPT if key in row}
    return {
        **named,
        "seed": row["seed"],
        **figures,
        "gain": round(matched.gain(row), 4),
        "forgetting": round(matched.forgetting(row), 5),
        "forgetting_error": row["rises"]["source_test"]["error"],
        "unseen": row["rises"]["unseen_test"],
    }


def held_row(row: dict[str, Any], fixed: list[dict[str, Any]], plain: dict[str, Any]) -> dict[str, Any]:
    """A budget run, with the budget against what happened and the learning against the best fixed strength's."""
    forgotten = matched.forgetting(row)
    best = gain_at(fixed, forgotten)
    return {
        **about(row),
        "kind": "budget",
        "ratio": round(forgotten / row["budget"], 4),
        "against": "the budget",
        "binds": matched.forgetting(plain) > row["budget"],
        "learning": None if best is None else round(matched.gain(row) / best, 4),
        "step_ratio": round(row["cpu_seconds_per_step"] / plain["cpu_seconds_per_step"], 4),
    }


def gain_at(fixed: list[dict[str, Any]], forgotten: float) -> float | None:
    """The gain of fixed strengths at a forgetting: linear in its logarithm; None outside what was measured."""
    points = sorted((matched.forgetting(row), matched.gain(row)) for row in fixed)
    for (low, less), (high, more) in pairwise(points):
        if 0 < low <= forgotten <= high:
            return less + (more - less) * math.log(forgotten / low) / math.log(high / low)
    return None


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each case and budget over its seeds."""
    found = []
    for case, budget in dict.fromkeys((row["case"], row["budget"]) for row in rows):
        runs = [row for row in rows if (row["case"], row["budget"]) == (case, budget)]
        ratios, learning = [row["ratio"] for row in runs], [row["learning"] for row in runs if row["learning"]]
        found.append(
            {
                "case": case,
                "budget": budget,
                "binds": all(row["binds"] for row in runs),
                "seeds": len(runs),
                "ratio": round(statistics.median(ratios), 3),
                "least": min(ratios),
                "most": max(ratios),
                "error": round(statistics.median(row["forgetting_error"] / budget for row in runs), 3),
                "within_a_fifth": sum(0.8 <= ratio <= 1.2 for ratio in ratios),
                "learning": round(statistics.median(learning), 4) if learning else None,
                "least_learning": min(learning, default=None),
                "step_ratio": round(statistics.median(row["step_ratio"] for row in runs), 3),
            }
        )
    return found


if __name__ == "__main__":
    main()
