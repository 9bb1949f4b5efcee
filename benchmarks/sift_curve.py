"""What gradient selection is worth at every budget of entries, as in SIFT's MRPC figure (arXiv 2312.11875).

    python benchmarks/sift_curve.py --banking77 DIR --json benchmarks/results/sift-banking77.json
    python benchmarks/sift_curve.py --json benchmarks/results/sift-code.json

MiniLM learns Banking77's 77 intents (its linear layers; the head is trained densely in every run and not counted), or
the shipped model learns the demo's Python code. SIFT with masks by the gradient of one batch, as in the paper; by the
mean gradient of eight, competing over all tensors (code only); and random masks; beside LoRA, full fine-tuning of the
same layers and, for the classifier, its head alone. Every run is a plain loop: AdamW, linear decay, clipping at 1.

The head's learning rate is fixed; that of each method and budget is the best of `rates` on validation data, seed 0.
It is then trained with every seed, and `score` is on test data: accuracy, or the gain in nats per token. Each finished
run is a line beside the result (`.jsonl`); the same command goes on from there.
"""

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import curve_tasks
import measure
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from holdfast.sift.config import SiftConfig
from holdfast.sift.selection import select
from holdfast.targets import select as layers_of

HEAD_RATE = 1e-2  # in every run
Case = dict[str, Any]  # method, entries, rate, seed, steps, split
MASKS: dict[str, dict[str, Any]] = {
    "gradient": {"score": "gradient", "scope": "tensor", "batches": 1},
    "gradient, 8 batches, global": {"score": "gradient", "scope": "global", "batches": 8},
    "random": {"score": "random", "scope": "tensor", "batches": 1},
}


def main() -> None:
    """Run what is not on record yet, and write or print."""
    options = arguments()
    task = "code" if options.banking77 is None else "banking77"
    record = None if options.json is None else options.json.with_suffix(".jsonl")
    grid = list(budgets(task, options.entries))
    rates = curve_tasks.RATES[task]
    tried = [
        {"method": m, "entries": n, "rate": rate, "seed": 0, "steps": options.steps, "split": "validation"}
        for m, n in grid
        for rate in rates[m.split(",")[0]]
    ]
    scores = run(task, options.banking77, tried, record, options.processes)
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for case, own in zip(tried, scores, strict=True):
        key = case["method"], case["entries"]
        best[key] = max(best.get(key, (-1.0, 0.0)), (own["score"], case["rate"]))
    final = [
        {"method": m, "entries": n, "rate": best[m, n][1], "seed": seed, "steps": options.steps, "split": "test"}
        for m, n in grid
        for seed in range(options.seeds)
    ]
    found = run(task, options.banking77, final, record, options.processes)
    rows = [{**case, **own} for case, own in zip(final, found, strict=True)]
    settings = {
        "task": task,
        "steps": options.steps,
        "seeds": options.seeds,
        "rates": rates,
        "head_rate": HEAD_RATE,
        "masks": MASKS,
    }
    measure.publish(rows, options.json, settings=settings, summary=summary(rows))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--banking77", type=Path, metavar="DIR", help="its train.csv and test.csv; default: code")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--entries", type=int, nargs="+", help="budgets; default: the task's")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="runs at a time")
    return parser.parse_args()


def budgets(task: str, entries: list[int] | None) -> Iterator[tuple[str, int]]:
    """Every method with every number of entries; LoRA's follow from its ranks."""
    for count in entries or curve_tasks.ENTRIES[task]:
        yield from ((mask, count) for mask in curve_tasks.MASKS[task])
    yield from (("lora", rank) for rank in curve_tasks.RANKS[task])
    yield "full", 0
    if task == "banking77":
        yield "head", 0


def run(
    task: str, folder: Path | None, cases: list[Case], record: Path | None, processes: int
) -> list[dict[str, Any]]:
    """What each case found, read from the record or run and added to it."""
    known = {}
    if record is not None and record.is_file():
        known = {line["key"]: line["found"] for line in map(json.loads, record.read_text().splitlines())}
    keys = [json.dumps([task, case], sort_keys=True) for case in cases]
    missing = {key: case for key, case in zip(keys, cases, strict=True) if key not in known}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _start) as pool:
        futures = {key: pool.submit(trained, task, folder, case) for key, case in missing.items()}
        for key, future in futures.items():
            known[key] = future.result()
            print(key, known[key], flush=True)
            if record is not None:
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": key, "found": known[key]}) + "\n")
    return [known[key] for key in keys]


def _start() -> None:
    torch.set_num_threads(1)


_learner = cache(curve_tasks.learner)


def trained(task: str, folder: Path | None, case: Case) -> dict[str, Any]:
    """One run: its score, and how many parameters besides the head were trained."""
    learns, started = _learner(task, folder), time.perf_counter()
    torch.manual_seed(case["seed"])
    model = prepared(learns, case)
    parameters = [p for p in model.parameters() if p.requires_grad]
    head = learns.head(model)
    body = [p for p in parameters if all(p is not other for other in head)]
    groups = [{"params": body, "lr": case["rate"]}, {"params": head, "lr": HEAD_RATE}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / case["steps"])
    model.train()
    for batch in learns.batches(case["seed"], case["steps"]):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {
        **learns.scores(model.eval(), case["split"]),
        "trained": sum(p.numel() for p in body),
        "seconds": round(time.perf_counter() - started, 1),
    }


def prepared(learns: curve_tasks.Learner, case: Case) -> nn.Module:
    """The model with what the case trains."""
    model = copy.deepcopy(learns.model).requires_grad_(False)
    if case["method"] in MASKS:
        mask = MASKS[case["method"]]
        config = SiftConfig(target_modules=learns.targets, count=case["entries"], seed=case["seed"], **mask)
        model = get_peft_model(model, config)
        select(model, learns.batches(case["seed"] + 1000, mask["batches"]))
    elif case["method"] == "lora":
        model = get_peft_model(model, LoraConfig(target_modules=learns.targets, r=case["entries"]))
    elif case["method"] == "full":
        for layer in layers_of(model, learns.targets).values():
            layer.weight.requires_grad_(True)
    for parameter in learns.head(model):
        parameter.requires_grad_(True)
    return model


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["trained"]), []).append(row)
    found = []
    for (method, count), own in groups.items():
        scores = [row["score"] for row in own]
        entry = {"method": method, "trained": count, "rate": own[0]["rate"], "seeds": len(own)}
        entry |= {"score": statistics.mean(scores), "deviation": statistics.stdev(scores) if len(own) > 1 else None}
        if "forgetting" in own[0]:
            entry["forgetting"] = statistics.mean(row["forgetting"] for row in own)
        found.append(entry)
    return found


if __name__ == "__main__":
    main()
