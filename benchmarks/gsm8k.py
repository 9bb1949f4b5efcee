"""The commands a user types, on real data: the shipped model learns GSM8K and keeps its prose.

    python benchmarks/gsm8k.py --data ../shared/data/gsm8k --out /tmp/gsm8k --json benchmarks/results/gsm8k.json

Runs `holdfast anchor`, `holdfast tune` (plain, anchored, distilled from itself, both) and `holdfast evaluate` as
separate processes. Prompt = question, completion = answer, loss on the answer. Forgetting is measured on documentation
prose that neither trained nor steered anything; learning on GSM8K's test file. The model is far too small to solve a
problem: what is measured is the loss.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure

from holdfast.models import shipped
from holdfast.tasks import prose

LENGTH = 256


def holdfast(*arguments: object) -> dict[str, Any]:
    """Run one command and return what it prints with --json."""
    command = [str(Path(sys.executable).with_name("holdfast")), *map(str, arguments), "--json"]
    print("$ holdfast", *arguments, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def write_prose(folder: Path) -> dict[str, Path]:
    """The prose task as text files, one a split."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split in ("train", "test"):
        files[split] = folder / f"prose-{split}.jsonl"
        lines = [json.dumps({"text": document}) for document in prose.documents(split)]
        files[split].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files


def main() -> None:
    """Anchor once, tune each way, evaluate each on the same held-out data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with GSM8K's train.jsonl and test.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder for anchors, adapters and reports")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--strength", type=float, default=4.0)
    parser.add_argument("--distill", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    files, model = write_prose(options.out), shipped()
    anchor = options.out / "anchor"
    anchored = holdfast("anchor", "--model", model, "--source", files["train"], "--out", anchor, "--max-items", 32768)
    common = ["--model", model, "--target", options.data / "train.jsonl", "--length", LENGTH, "--steps", options.steps]
    common += ["--batch-size", 16, "--learning-rate", 3e-3, "--seed", options.seed]
    weight = ["--anchor", anchor, "--strength", options.strength]
    function = ["--source", "self", "--distill", options.distill, "--set", "distill_top_k=64"]
    function += ["--set", "distill_sequences=2"]
    ways = {"none": [], "kronecker": weight, "distill-self": function, "kronecker+distill-self": weight + function}

    rows, plain = [], None
    for name, arguments in ways.items():
        out = options.out / name
        tuned = holdfast("tune", *common, *arguments, "--out", out)["rows"][0]
        measured = holdfast(
            "evaluate", "--model", model, "--adapter", out / "adapter", "--length", LENGTH,
            "--source", files["test"], "--target", options.data / "test.jsonl",
        )["rows"][0]  # fmt: skip
        losses = {key: value for key, value in measured.items() if key.endswith(("before", "after"))}
        row = {"tool": "holdfast", "case": name, **tuned, **losses}
        row = {key: value for key, value in row.items() if key not in ("history", "per_layer", "samples")}
        plain = plain or row
        row["gain_kept"] = gain(row) / gain(plain)
        row["forgetting_of_plain"] = forgetting(row) / forgetting(plain)
        rows.append(row)
        print(f"{name}: gain {gain(row):.3f}, forgetting {forgetting(row):.3f} nats/token", flush=True)
    settings = {"model": model.name, "length": LENGTH, "steps": options.steps, "batch_size": 16, "learning_rate": 3e-3}
    measure.publish(
        rows,
        options.json,
        settings=settings,
        anchor={key: anchored[key] for key in ("curvature", "layers", "items", "item", "seconds", "megabytes")},
    )


def gain(row: dict[str, Any]) -> float:
    """Fall of the target loss, nats per token."""
    return row["target_before"] - row["target_after"]


def forgetting(row: dict[str, Any]) -> float:
    """Rise of the source loss, nats per token."""
    return row["source_after"] - row["source_before"]


if __name__ == "__main__":
    main()
