"""The embedded main job: a small pre-trained model learns Python code and keeps its English prose."""

import random
from pathlib import Path
from typing import Any, Protocol

import torch

from holdfast import workers
from holdfast.batches import Row
from holdfast.comparison import ComparisonSettings, Hold, Workload, blocks
from holdfast.files import require_writable, write_json, write_text
from holdfast.language_model import load_tokenizer
from holdfast.machine import machine, versions
from holdfast.models import shipped
from holdfast.recipe import TrainingSettings, dump
from holdfast.report import page
from holdfast.tasks import code, prose

PROMPTS = {
    "source": "Return a list of the names of all",
    "target": "def read(self, size=-1):\n    ",
}
MEASURED = 128  # blocks per side and split
TRAINED = 3200  # blocks of code at most: 200 steps see each once
STEPS = 200

# Two source sequences a step against answers stored before training: benchmarks/distill.py compares other ways.
CHEAP = {"distill_sequences": 2, "distill_top_k": 64}


def way(curvature: str | None = None, strength: float = 0.0, **more: Any) -> Hold:
    """One way of holding on, with the demo's settings of distillation and replay."""
    cheap = CHEAP if "distill" in more else {"distill_sequences": 2} if "replay" in more else {}
    return Hold(curvature=curvature, strength=strength, **more, **cheap)


# Strengths chosen on the validation part of `holdfast demo --sweep --seeds 3`: benchmarks/results/demo.json.
USUAL = [
    way(),
    way("identity", 0.1),
    way("kronecker", 8.0),
    way(distill=1.2),
    way("kronecker", 4.0, distill=0.6),
]
FURTHER = [
    way("diagonal", 30.0),
    way("kronecker", 16.0, damping=0.1),
    way(distill=1.2, distill_source="source"),
    way("kronecker", 4.0, distill=0.6, distill_source="source"),
    way(replay=0.3),
]


class Watch(Protocol):
    """Who is told how far the runs have come."""

    def begin(self, names: list[str]) -> None:
        """The runs that will come."""

    def say(self, message: str) -> None:
        """A preparation has begun or ended."""

    def step(self, job: int, step: int, steps: int) -> None:
        """A run has come to a step."""

    def row(self, job: int, row: dict[str, Any]) -> None:
        """A run has finished."""


def settings(steps: int = STEPS) -> ComparisonSettings:
    """What every row of the demo has in common."""
    training = TrainingSettings(steps=steps, batch_size=16, learning_rate=3e-3, warmup=0.05, log_steps=10)
    return ComparisonSettings(model=str(shipped()), training=training)


def workload(common: ComparisonSettings) -> Workload:
    """Prose and code from the standard library, in blocks."""
    tokenizer = load_tokenizer(common.model)
    rows = {}
    for task, side in ((prose, "source"), (code, "target")):
        for split in ("train", "validation", "test"):
            documents = task.documents(split)
            random.Random(0).shuffle(documents)
            limit = TRAINED if split == "train" else MEASURED
            rows[f"{side}_{split}"] = blocks(tokenizer, documents, common.length, limit)
    measured = {name: part for name, part in rows.items() if not name.endswith("train")}
    return Workload(rows["target_train"], rows["source_train"], measured, PROMPTS)


def grid() -> list[Hold]:
    """Every way of holding on at several strengths."""
    holds = [way()]
    holds += [way("identity", strength) for strength in (0.03, 0.1, 0.3)]
    holds += [way("diagonal", strength) for strength in (10.0, 30.0, 100.0)]
    holds += [way("kronecker", strength) for strength in (2.0, 4.0, 8.0, 16.0)]
    holds += [way("kronecker", strength, damping=0.1) for strength in (4.0, 16.0)]
    for where in ("self", "source"):
        holds += [way(distill=weight, distill_source=where) for weight in (0.3, 0.6, 1.2)]
    holds += [way("kronecker", strength, distill=weight) for strength, weight in ((2.0, 0.3), (4.0, 0.6), (8.0, 0.6))]
    holds += [way("kronecker", 4.0, distill=0.6, distill_source="source")]
    holds += [way(replay=weight) for weight in (0.1, 0.3, 1.0)]
    return holds


def run(
    out: Path,
    *,
    every: bool = False,
    seeds: int = 1,
    sweep: bool = False,
    steps: int | None = None,
    processes: int | None = None,
    watch: Watch,
) -> dict[str, Any]:
    """Run the comparison and write results.json, report.html and the resolved settings into `out`."""
    require_writable(out)
    common = settings(steps or STEPS)
    watch.say("Reading the standard library's prose and code ...")
    work = workload(common)
    holds = grid() if sweep else USUAL + (FURTHER if every else [])
    jobs = [(hold, seed) for seed in range(seeds) for hold in holds]
    watch.begin([f"{hold.label} {hold.strength or hold.distill or hold.replay or ''} seed {s}" for hold, s in jobs])
    rows: dict[int, dict[str, Any]] = {}

    def on_row(job: int, row: dict[str, Any]) -> None:
        rows[job] = row
        write_json(out / "rows.partial.json", [rows[i] for i in sorted(rows)])  # a killed sweep keeps what it has
        watch.row(job, row)

    done = workers.run(common, work, jobs, on_step=watch.step, on_row=on_row, processes=processes)
    results = _results(common, work, done)
    blank = blank_share(load_tokenizer(common.model), work.measured["target_test"])
    results["warnings"].append(
        f"{blank:.0%} of the code's tokens are white space, which is learned first and easily kept: on harder targets "
        "the same share of the gain costs more."
    )
    write_text(out / "recipe.resolved.yaml", dump(common))
    write_json(out / "results.json", results)
    page.write(results, out / "report.html")
    (out / "rows.partial.json").unlink(missing_ok=True)
    return results


def blank_share(tokenizer: Any, rows: list[Row]) -> float:
    """The share of tokens that are nothing but white space."""
    ids = torch.cat([row["input_ids"] for row in rows])
    blank = [i for i in range(len(tokenizer)) if not tokenizer.decode([i]).strip()]
    return float(torch.isin(ids, torch.tensor(blank)).float().mean())


def _results(common: ComparisonSettings, work: Workload, rows: list[dict[str, Any]]) -> dict[str, Any]:
    sizes = {name: len(part) * common.length for name, part in work.measured.items()}
    return {
        "schema": 1,
        "title": "A model that knows English prose learns Python code",
        "question": "How much English does a small language model forget while it learns Python code with LoRA, "
        "and what does each way of holding on keep?",
        "settings": {**common.model_dump(mode="json"), "model": shipped().name, "measured_tokens": sizes},
        "machine": machine(),
        "versions": versions(),
        "source": {"name": "documentation prose", "item": prose.ITEM},
        "target": {"name": "Python code", "item": code.ITEM},
        "rows": rows,
        "warnings": [],
    }
