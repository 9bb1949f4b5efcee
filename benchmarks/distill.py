"""How cheap distillation from the model itself can get, and what each saving costs in forgetting.

    python benchmarks/distill.py --json benchmarks/results/distill.json

On the shipped model and the demo's task: source sequences per step, every n-th step, stored teacher answers (top-k),
and what is distilled on (the model's own samples, real source text, target inputs, random tokens). The goal: at least
98 % of plain LoRA's gain at no more than 16 % of its forgetting, at no more than 1.15 times its step. Steps are CPU
time of one thread, every n-th one included; runs that held on and the plain run share the machine in one sitting.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import measure

from holdfast import demo, workers
from holdfast.comparison import Hold

COST = [  # sequences, every, top_k
    (4, 1, None),
    (2, 1, None),
    (1, 1, None),
    (4, 2, None),
    (4, 1, 64),
    (2, 1, 64),
    (1, 1, 64),
    (4, 2, 64),
    (4, 4, 64),
]
SOURCES = ("source", "target", "random")


def cases(weight: float) -> dict[str, Hold]:
    """Name -> way of holding on."""
    named = {"plain": Hold()}
    for sequences, every, top_k in COST:
        teacher = "live teacher" if top_k is None else f"top-{top_k} stored"
        name = f"self, {sequences} sequences, every {every}, {teacher}"
        named[name] = Hold(distill=weight, distill_sequences=sequences, distill_every=every, distill_top_k=top_k)
    for source in SOURCES:
        named[f"{source}, 4 sequences, every 1, live teacher"] = Hold(distill=weight, distill_source=source)
    return named


def summary(name: str, hold: Hold, rows: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over seeds, each seed against its own plain run."""

    def middle(read: Any) -> float:
        return round(statistics.median(read(row, base) for row, base in zip(rows, plain, strict=True)), 4)

    return {
        "tool": "holdfast",
        "case": name,
        "hold": hold.model_dump(exclude_defaults=True),
        "seeds": len(rows),
        "ms": middle(lambda row, _: 1e3 * row["cpu_seconds_per_step"]),
        "ratio": middle(lambda row, base: row["cpu_seconds_per_step"] / base["cpu_seconds_per_step"]),
        "against": "step of plain LoRA, same seed, same sitting",
        "peak_mb": middle(lambda row, _: row["peak_memory_mb"]),
        "preparation_s": middle(lambda row, _: row["anchor_seconds"]),
        "gain_kept": middle(lambda row, base: change(row, "target") / change(base, "target")),
        "forgetting_of_plain": middle(lambda row, base: change(row, "source") / change(base, "source")),
        "forgetting_nats": middle(lambda row, _: change(row, "source")),
        "measured_kl": middle(lambda row, _: row["predicted_forgetting"] or 0.0),
    }


def change(row: dict[str, Any], side: str) -> float:
    """After minus before, nats per token."""
    return row[f"{side}_after"] - row[f"{side}_before"]


def main() -> None:
    """Run every case with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--weight", type=float, default=0.8, help="of the KL")
    parser.add_argument("--steps", type=int, default=demo.STEPS)
    parser.add_argument("--processes", type=int, help="runs at a time; default: one per core")
    options = parser.parse_args()
    common = demo.settings(options.steps)
    work, named = demo.workload(common), cases(options.weight)
    jobs = [(hold, seed) for seed in range(options.seeds) for hold in named.values()]
    rows = workers.run(
        common,
        work,
        jobs,
        on_step=lambda job, step, steps: None,
        on_row=lambda job, row: print(f"{job + 1} of {len(jobs)} done", flush=True),
        processes=options.processes,
    )
    by_case = {name: rows[index :: len(named)] for index, name in enumerate(named)}
    summaries = [summary(name, hold, by_case[name], by_case["plain"]) for name, hold in named.items()]
    measure.publish(summaries, options.json, settings=common.model_dump(mode="json") | {"weight": options.weight})


if __name__ == "__main__":
    main()
