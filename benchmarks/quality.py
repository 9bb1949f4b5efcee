"""What smaller structures lose: the error of q against the full factors, on random and on real shifts.

    python benchmarks/quality.py --json benchmarks/results/quality.json

The shipped model's Kronecker anchor on 128 sequences of prose, full and in every smaller storage, in bfloat16 files,
from bfloat16 rows and from a share of the positions; and the same full anchor from other data, for scale. `random` is
the mean of |q / q_exact - 1| over layers and 64 shifts of rank one each, `worst` the mean over layers of the largest,
`real` q / q_exact - 1 of the shift that plain LoRA takes in 100 steps of the demo, all layers together, and
`real_layers` the mean of its size over layers. `stored` is the file's size over the full one's; `captured` the mean
share of a factor's trace that is held along directions.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn

from holdfast import catalogue, demo
from holdfast.anchor import Anchor
from holdfast.anchors.approximation import TOGETHER, quality
from holdfast.batches import Row, collate
from holdfast.language_model import load_model
from holdfast.penalties.prices import Prices
from holdfast.training import train
from holdfast.tuners.options import chosen

SEQUENCES, BATCH, STEPS = 128, 8, 100
CASES: dict[str, dict[str, Any]] = {
    **{storage: {"storage": storage} for storage in ("low-rank:64", "low-rank:32", "low-rank:16", "low-rank:8")},
    **{storage: {"storage": storage} for storage in ("blocks:64", "blocks:32", "blocks:16", "diagonal")},
    "bfloat16 rows": {"dtype": torch.bfloat16},
    "half of the positions": {"fraction": 0.5},
    "a quarter of the positions": {"fraction": 0.25},
}


def main() -> None:
    """Measure, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result there instead of printing it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = demo.settings(STEPS)
    work = demo.workload(settings)
    model = load_model(settings.model, "float32")
    exact = anchor(model, work.source_train[:SEQUENCES])
    shifts = moved(model, exact, settings, work.target_train)
    full = size(exact)
    rows = [row(case, anchor(model, work.source_train[:SEQUENCES], **asked), exact, shifts, full)
            for case, asked in CASES.items()]  # fmt: skip
    rows.append(row("bfloat16 file", exact, exact, shifts, full, torch.bfloat16))
    other = anchor(model, work.source_train[SEQUENCES : 2 * SEQUENCES])
    other.facts["data_sha256"] = exact.facts["data_sha256"]  # compared on purpose
    rows.append(row("other data, full", other, exact, shifts, full))
    facts = {"model": "shipped", "curvature": "kronecker", "sequences": SEQUENCES, "length": settings.length}
    measure.publish(rows, options.json, settings=facts | {"steps": STEPS, "rank": settings.rank})


def anchor(model: nn.Module, rows: list[Row], **asked: Any) -> Anchor:
    """A Kronecker anchor of the base model."""
    batches = [collate(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH)]
    return Anchor.estimate(model, batches, progress=False, **asked)


def moved(model: nn.Module, exact: Anchor, settings: Any, rows: list[Row]) -> dict[str, Tensor]:
    """Layer -> how far plain LoRA moves it; the model itself stays as it is."""
    torch.manual_seed(0)
    base = load_model(settings.model, "float32")
    tuned = chosen(catalogue.tuner(settings.method), {}, rank=settings.rank).prepare(base, settings.targets)
    readers = Prices(tuned, exact, 0.0).readers
    train(tuned, rows, settings.training, seed=0, quiet=True)
    return {name: reader().matrix().detach() for name, reader in readers.items()}


def row(
    case: str, found: Anchor, exact: Anchor, shifts: dict[str, Tensor], full: int, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """One approximation beside the full factors."""
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "anchor", dtype)
        loaded = Anchor.load(Path(folder) / "anchor")
        stored = weight(Path(folder) / "anchor")
    *layers, together = quality(loaded, exact, shifts)
    assert together.layer == TOGETHER
    held = [share for layer in layers for share in layer.captured.values()]
    return {
        "tool": "holdfast",
        "case": case,
        "random": round(statistics.mean(layer.random_error for layer in layers), 4),
        "worst": round(statistics.mean(abs(layer.random_worst) for layer in layers), 4),
        "real": round(together.shift_error or 0.0, 4),
        "real_layers": round(statistics.mean(abs(layer.shift_error or 0.0) for layer in layers), 4),
        "captured": round(statistics.mean(held), 4) if held else None,
        "stored": round(stored / full, 4),
        "against": "full factors in float32 of the same data",
    }


def size(found: Anchor) -> int:
    """Bytes of its tensors in a file."""
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "anchor")
        return weight(Path(folder) / "anchor")


def weight(folder: Path) -> int:
    """Bytes of a folder's tensors."""
    return (folder / "anchor.safetensors").stat().st_size


if __name__ == "__main__":
    main()
