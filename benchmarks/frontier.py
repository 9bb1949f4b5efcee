"""Learning against forgetting for every structure and the baselines, at matched target loss.

    python benchmarks/frontier.py --json benchmarks/results/frontier.json
    python benchmarks/frontier.py --gsm8k DIR --steps 60 --json benchmarks/results/frontier-gsm8k.json

The shipped model learns the demo's Python code (or GSM8K's answers) and is measured on prose it knew: LoRA of rank 8
on all linear layers, the demo's settings at 100 steps (60 for GSM8K: its answers are longer), 3 seeds, several
strengths a method. Forgetting and gain are shares of the plain run's of the same seed; `summary` reads each method's
curve at 98, 95 and 90 % of the plain gain. Early stopping, LoRA on the MLP alone and LoRA with A frozen are read along
their one run. Steps are CPU time of one thread, every run one process.

Each finished run is a line beside the result (`.jsonl`); the same command goes on from there. A plot comes beside the
result too, where matplotlib is installed.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import frontier_cases
import matched
import measure
from frontier_cases import Method

from holdfast import demo, workers
from holdfast.batches import Row
from holdfast.comparison import ComparisonSettings, Hold, Workload, blocks
from holdfast.files import write_text
from holdfast.language_model import load_tokenizer
from holdfast.recipe import DataSettings
from holdfast.sides import read_side
from holdfast.tasks import prose

STEPS = 100
ANSWERS = 256  # tokens of a GSM8K pair at most
GSM8K_STRENGTHS = 0.25  # of those for code
GSM8K = (
    "early stopping", "low learning rate", "weight decay", "MLP only", "frozen A", "replay", "distill, own text",
    "distill, source text", "identity", "diagonal", "rank-one", "kronecker", "kronecker, damping 0.1", "tracekron",
    "eigen", "tridiagonal", "samples", "samples-joint", "adapter diagonal", "adapter kronecker",
)  # fmt: skip
DROPPED = (
    "history",
    "per_layer",
    "predicted_forgetting",
    "samples",
    "validation",
)  # of a run's row: not what this asks


def main() -> None:
    """Run what is not on record yet, and write or print."""
    options = arguments()
    common, work = workload(options)
    share = GSM8K_STRENGTHS if options.gsm8k else 1.0
    chosen = [m for m in frontier_cases.methods(options.steps, share) if wanted(m.name, options)]
    jobs = [(m.name, hold, seed) for seed in range(options.seeds) for m in chosen for hold in m.holds]
    rows = run(common, work, jobs, record_of(options), options.processes)
    result = compared(chosen, jobs, rows)
    settings = {**common.model_dump(mode="json"), "model": "shipped", "target": "gsm8k" if options.gsm8k else "code"}
    measure.publish(result["rows"], options.json, settings=settings, summary=result["summary"])
    if options.json is not None:
        plot(result, options.json.with_suffix(".svg"))


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="beside plain LoRA")
    parser.add_argument("--gsm8k", type=Path, metavar="DIR", help="learn GSM8K: its train.jsonl and test.jsonl")
    parser.add_argument("--processes", type=int, help="runs at a time; default: one per core")
    return parser.parse_args()


def wanted(name: str, options: argparse.Namespace) -> bool:
    """Whether a method is to be run; plain LoRA always is."""
    names = options.only or (GSM8K if options.gsm8k else None)
    return names is None or name in names or name == "early stopping"


def record_of(options: argparse.Namespace) -> Path | None:
    """Where finished runs are kept; its folder is made before anything is run."""
    if options.json is None:
        return None
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options.json.with_suffix(".jsonl")


def workload(options: argparse.Namespace) -> tuple[ComparisonSettings, Workload]:
    """Settings and data: code, or GSM8K's answers; only the test parts are measured."""
    common = demo.settings(options.steps)
    work = demo.workload(common)
    tested = {name: rows for name, rows in work.measured.items() if name.endswith("test")}
    if options.gsm8k is None:
        return common, Workload(work.target_train, work.source_train, tested)
    tokenizer = load_tokenizer(common.model)
    train, test = (pairs(options.gsm8k / f"{split}.jsonl", tokenizer) for split in ("train", "test"))
    source = blocks(tokenizer, prose.documents("test"), common.length, demo.MEASURED)
    return common, Workload(train, work.source_train, {"source_test": source, "target_test": test[: demo.MEASURED]})


def pairs(path: Path, tokenizer: Any) -> list[Row]:
    """Questions with their answers, loss on the answers."""
    return read_side(DataSettings(path=str(path)), tokenizer, ANSWERS).rows


def run(
    common: ComparisonSettings,
    work: Workload,
    jobs: list[tuple[str, Hold, int]],
    record: Path | None,
    processes: int | None,
) -> list[dict[str, Any]]:
    """A row for each job, read from the record or run and added to it."""
    keys = [key(common, work, hold, seed) for _, hold, seed in jobs]
    known = recorded(record)
    missing = [index for index, name in enumerate(keys) if name not in known]

    def on_row(place: int, row: dict[str, Any]) -> None:
        index = missing[place]
        known[keys[index]] = {name: value for name, value in row.items() if name not in DROPPED}
        if record is not None:
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": keys[index], "row": known[keys[index]]}) + "\n")
        name, _, seed = jobs[index]
        strength = row["strength"] or ""
        print(
            f"{len(known)} of {len(jobs)}: {name} {strength} seed {seed}: gain {matched.gain(row):.3f}, "
            f"forgetting {matched.forgetting(row):.3f} nats",
            flush=True,
        )

    if missing:
        todo = [(jobs[index][1], jobs[index][2]) for index in missing]
        workers.run(common, work, todo, on_step=lambda *_: None, on_row=on_row, processes=processes)
    return [known[name] for name in keys]


def key(common: ComparisonSettings, work: Workload, hold: Hold, seed: int) -> str:
    """What makes two runs the same: settings, data and seed."""
    digest = hashlib.sha256(json.dumps([common.model_dump(), hold.model_dump(), seed], sort_keys=True).encode())
    for rows in (work.target_train, work.source_train, *work.measured.values(), work.steering):
        for row in rows:
            digest.update(row["input_ids"].numpy().tobytes())
    return digest.hexdigest()


def recorded(record: Path | None) -> dict[str, dict[str, Any]]:
    """Key -> row of the runs on record; a line cut off by a kill is dropped from the file."""
    if record is None or not record.exists():
        return {}
    whole = []
    for line in record.read_text(encoding="utf-8").splitlines():
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    write_text(record, "".join(json.dumps(entry) + "\n" for entry in whole))
    return {entry["key"]: entry["row"] for entry in whole}


def compared(
    methods: list[Method], jobs: list[tuple[str, Hold, int]], rows: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Rows against the plain run of their seed, and a summary of each method."""
    by_method: dict[str, list[dict[str, Any]]] = {}
    for (name, _, _), row in zip(jobs, rows, strict=True):
        by_method.setdefault(name, []).append(row)
    plain = {row["seed"]: row for row in by_method[methods[0].name]}
    summary = [matched.summary(m.name, by_method[m.name], plain, limit=m.limit) for m in methods]
    return {"rows": [row for m in methods for row in result_rows(m, by_method[m.name], plain)], "summary": summary}


def result_rows(method: Method, rows: list[dict[str, Any]], plain: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """A method's runs as rows of the result file."""
    found = []
    for row in rows:
        kept, forgotten = matched.point(row, plain[row["seed"]])
        took = row["cpu_seconds_per_step"]
        way = [(each["step"], *matched.point(each, plain[row["seed"]])) for each in matched.along(row)]
        found.append(
            {
                "tool": "holdfast",
                "case": method.name,
                **{name: value for name, value in row.items() if name not in ("along", "cpu_seconds_per_step")},
                "gain_kept": round(kept, 4),
                "forgetting_of_plain": round(forgotten, 4),
                "ms": round(1e3 * took, 3),
                "ratio": round(took / plain[row["seed"]]["cpu_seconds_per_step"], 4),
                "against": "step of plain LoRA, same seed",
                "along": [
                    {"step": step, "gain_kept": round(gain, 4), "forgetting_of_plain": round(lost, 4)}
                    for step, gain, lost in way
                ],
            }
        )
    return found


def plot(result: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Curves and costs as an SVG, where matplotlib is installed."""
    try:
        import plots
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib")
        return
    plots.frontier(result["rows"], result["summary"], path)


if __name__ == "__main__":
    main()
